"""``GET /wattfare.js`` redirects to the current version, which a browser caches for good."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from support.http_client import fetch
from support.service import Service


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("wattfare.js", "text/javascript; charset=utf-8"),
        ("wattfare.d.ts", "text/plain; charset=utf-8"),
    ],
)
def test_unversioned_path_redirects_to_the_current_version(
    service: Service, name: str, media_type: str
) -> None:
    first = fetch(f"{service.url}/{name}")
    assert first.status_code == 307
    assert first.headers["cache-control"] == "public, max-age=300"
    target = str(first.next_request.url) if first.next_request else ""
    stem, _, suffix = name.partition(".")
    assert re.fullmatch(rf"{service.url}/{stem}\.[0-9a-f]{{16}}\.{suffix}", target)
    answer = fetch(target)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert hashlib.sha256(answer.content).hexdigest()[:16] in target
    for response in (first, answer):
        assert response.headers.get_list("access-control-allow-origin") == ["*"]
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in response.headers
    # The value for `integrity`.
    assert base64.b64encode(hashlib.sha384(answer.content).digest())
    assert fetch(target, "HEAD").status_code == 200


@pytest.mark.parametrize(
    "name", ["wattfare.0123456789abcdef.js", "wattfare.x.d.ts", "wattfare..js"]
)
def test_unknown_version_is_not_found(service: Service, name: str) -> None:
    answer = fetch(f"{service.url}/{name}")
    assert answer.status_code == 404
    assert "immutable" not in answer.headers["cache-control"]
