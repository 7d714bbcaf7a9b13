"""Requests and answers as plain values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw import Request, Response
from wattfare_mw.headers import Headers
from wattfare_mw.web import json_response


def test_headers_are_found_in_any_case() -> None:
    headers = Headers([("Accept", "a"), ("ACCEPT", "b"), ("Cookie", "x=1"), ("cookie", "y=2")])
    assert headers["accept"] == "a, b"
    assert headers["COOKIE"] == "x=1; y=2"
    assert headers.get("nothing") is None
    assert "AccepT" in headers
    assert dict(headers) == {"accept": "a, b", "cookie": "x=1; y=2"}
    assert repr(headers) == "Headers(accept, cookie)"


def request_of(**headers: str) -> Request:
    return Request("GET", "/x", Headers(headers.items()), query_string="a=1&a=2&b=&c=%C3%BC+x&d")


def test_cookies_and_query_are_parsed() -> None:
    request = request_of(Cookie='a=1; b="two words"; c[x]=3; bad; =; d={"j":1}; e=5; f=%C3%BC')
    assert request.cookies["a"] == "1"
    assert request.cookies["b"] == "two words"
    assert request.cookies["e"] == "5"
    assert request.cookies["f"] == "%C3%BC"
    assert request.query == {"a": "2", "b": "", "c": "ü x", "d": ""}
    assert request_of().cookies == {}


@given(st.text())
def test_any_cookie_header_is_parsed(header: str) -> None:
    assert isinstance(request_of(Cookie=f"first=1; {header}").cookies, dict)


@given(st.text())
def test_any_query_is_parsed(query: str) -> None:
    assert isinstance(Request("GET", "/", Headers(), query_string=query).query, dict)


@pytest.mark.parametrize(
    ("interface", "has", "lacks"), [("asgi", "scope", "environ"), ("wsgi", "environ", "scope")]
)
def test_raw_request_is_kept(interface: Any, has: str, lacks: str) -> None:
    raw: dict[str, Any] = {}
    request = Request("GET", "/", Headers(), raw=raw, interface=interface)
    assert getattr(request, has) is raw
    with pytest.raises(AttributeError, match="came through"):
        getattr(request, lacks)


def test_reprs_hide_contents() -> None:
    response = json_response(200, b'{"token": "hush"}', {"x": "hush"})
    assert repr(response) == "Response(status=200, 17 bytes)"
    assert repr(request_of(Cookie="hush")) == "Request('GET', '/x')"
    assert response.headers == {
        "content-type": "application/json",
        "cache-control": "no-store",
        "x": "hush",
    }
    assert Response(204, {}, b"").body == b""
