"""The HTTP clients of the bare pass-throughs, which our middleware also uses in some rows, and the
address of the upstream."""

from __future__ import annotations

import os
from typing import Any

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "http://127.0.0.1:1")
API = f"{UPSTREAM}/api/v1"
SECRET_KEY = os.environ.get("BENCH_SECRET_KEY", "sk_test_bench_0123456789abcdef")
#: The headers that a bare pass-through sends to the upstream.
HEADERS = {"authorization": f"Bearer {SECRET_KEY}", "content-type": "application/json"}
#: The headers of the answer that it sends back.
PASSED = ("content-type", "content-length")


def httpx_options(httpx: Any) -> dict[str, Any]:
    """The settings of a client: any number of connections, as in our own transport, and no settings
    from the environment."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return {"limits": limits, "timeout": 600, "trust_env": False}


def httpx_async_client() -> Any:
    import httpx

    return httpx.AsyncClient(**httpx_options(httpx))


def httpx2_async_client() -> Any:
    import httpx2

    return httpx2.AsyncClient(**httpx_options(httpx2))


def httpx_client() -> Any:
    import httpx

    return httpx.Client(**httpx_options(httpx))


def aiohttp_session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, trust_env=False
    )
