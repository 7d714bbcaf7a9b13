"""The OpenAPI document of the service."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.http_client import fetch
from support.service import Service

from wattfare_mw.errors import STATUS_BY_CODE
from wattfare_mw.service.api import openapi
from wattfare_mw.service.api.routes import routes


def _document(*, with_metrics: bool = False) -> dict[str, Any]:
    return openapi.document(
        frozenset(route.path_format for route in routes(with_metrics=with_metrics))
    )


@pytest.mark.parametrize("with_metrics", [False, True])
def test_document_has_exactly_the_routes(with_metrics: bool) -> None:
    routed = {
        (route.path_format, method.lower())
        for route in routes(with_metrics=with_metrics)
        for method in (route.methods or {"POST"})
        if method != "HEAD"
    }
    paths = _document(with_metrics=with_metrics)["paths"]
    assert {(path, method) for path, item in paths.items() for method in item} == routed


def test_each_reference_resolves() -> None:
    document = _document(with_metrics=True)
    components = document["components"]
    names = set(re.findall(r"#/components/schemas/(\w+)", repr(document)))
    assert names == set(components["schemas"])
    operations = [one for item in document["paths"].values() for one in item.values()]
    used = {name for one in operations for scheme in one["security"] for name in scheme}
    assert used == set(components["securitySchemes"])


def test_amounts_and_codes_match_the_protocol() -> None:
    schemas = _document()["components"]["schemas"]
    assert schemas["ConnectionStatus"]["properties"].keys() == {
        "connected",
        "limits",
        "usage",
        "remainingUsd",
    }
    assert schemas["Usage"]["properties"]["monthlyUsd"]["maximum"] == 10**12
    codes = schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert set(codes) == set(STATUS_BY_CODE)


def test_document_is_public(service: Service) -> None:
    answer = fetch(f"{service.url}/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == _document()
