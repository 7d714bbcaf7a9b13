"""aiohttp: the fast one."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..web import Headers
from .base import KEEPALIVE_SECONDS, AsyncAnswer, HTTPRequest, LoopPool, network_error, ssl_context


def own_session() -> Any:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=ssl_context()
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Not `trust_env`: that looks for the proxy in a thread, for each request, and lets a
        # ~/.netrc get in the way of our credentials. `_environment_proxy` is told apart once.
        trust_env=False,
    )


@cache
def _environment_proxy(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all")


class AiohttpTransport:
    """Over an ``aiohttp.ClientSession``; ``own``: one that this module has set up."""

    def __init__(self, pool: LoopPool[Any], *, own: bool = False) -> None:
        self._pool = pool
        self._own = own

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        session = self._pool.get()
        options: dict[str, Any] = {}
        if self._own:
            parts = urlsplit(request.url)
            options["proxy"] = _environment_proxy(parts.scheme, parts.netloc.rpartition("@")[2])
        body: Any = request.body
        if body is not None and len(body) > 2**20:
            body = io.BytesIO(body)  # written in pieces, so that the loop goes on meanwhile
        with _AiohttpErrors():
            response = await session.request(
                request.method,
                request.url,
                headers=request.headers,
                data=body,
                allow_redirects=False,
                auto_decompress=False,
                raise_for_status=False,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=request.connect_timeout,
                    sock_connect=request.connect_timeout,
                    sock_read=request.read_timeout,
                ),
                **options,
            )
        return AiohttpAnswer(response)

    async def close(self) -> None:
        session = self._pool.take()
        if session is not None:
            await session.close()


class AiohttpAnswer:
    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Mapping[str, str] = Headers(response.headers.items())

    async def read(self) -> bytes:
        try:
            with _AiohttpErrors():
                return await self._response.read()
        finally:
            await self.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            with _AiohttpErrors():
                async for chunk in self._response.content.iter_any():
                    yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        # An answer that is complete has given its connection back already; else this closes it.
        self._response.close()


class _AiohttpErrors:
    """Turns what aiohttp raises into our own."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            return
        if isinstance(error, (aiohttp.ClientError, TimeoutError)):
            never_made = (
                aiohttp.ClientConnectorError,
                aiohttp.ConnectionTimeoutError,
                aiohttp.ClientHttpProxyError,
                aiohttp.InvalidURL,
            )
            raise network_error(error, sent=not isinstance(error, never_made)) from error
