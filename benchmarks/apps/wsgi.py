"""The middleware around a minimal WSGI app."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import clients
from wattfare_mw import Wattfare, WattfareMiddleware

from .users import signed_in_user

_HEAD = [("content-type", "text/plain"), ("content-length", "2")]


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer without reading the request."""
    start_response("200 OK", _HEAD)
    return [b"ok"]


def over_httpx() -> Any:
    client = Wattfare(clients.SECRET_KEY, base_url=clients.UPSTREAM, timeout=600)
    return WattfareMiddleware(hello, resolve_user=signed_in_user, client=client)
