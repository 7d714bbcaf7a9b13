"""HTTP requests of tests. They use no proxy, and the certificates of this machine are read once:
reading them takes longer than most tests."""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import httpx

from support.patience import PATIENCE


@cache
def ssl_context() -> ssl.SSLContext:
    """A value for the ``verify`` option of an HTTP client."""
    return ssl.create_default_context()


def http_client(**options: Any) -> httpx.Client:
    """A client with these options of :class:`httpx.Client`."""
    return httpx.Client(**_with_defaults(options))


def fetch(url: str | httpx.URL, method: str = "GET", **options: Any) -> httpx.Response:
    """Send one request, with these options of :func:`httpx.request`."""
    return httpx.request(method, url, **_with_defaults(options))


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    return {"trust_env": False, "verify": ssl_context(), "timeout": PATIENCE, **options}
