"""httpx and httpx2, which differ in name only."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from ..web import Headers
from .base import (
    KEEPALIVE_SECONDS,
    Answer,
    AsyncAnswer,
    HTTPRequest,
    LoopPool,
    Pool,
    network_error,
    ssl_context,
)


def _no_cookies() -> CookieJar:
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def own_client() -> Any:
    import httpx

    return httpx.Client(**_options(httpx))


def own_async_client() -> Any:
    import httpx

    return httpx.AsyncClient(**_options(httpx))


def _options(httpx: Any) -> dict[str, Any]:
    # The app's server bounds how much runs at once; a second bound here could only deadlock it.
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_SECONDS
    )
    return {"verify": ssl_context(), "cookies": _no_cookies(), "limits": limits}


class HttpxTransport:
    """Over an ``httpx.Client`` or an ``httpx2.Client``."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> Answer:
        client = self._pool.get()
        httpx = _module_of(client)
        with _HttpxErrors(httpx):
            outgoing = _httpx_request(client, httpx, request)
            return HttpxAnswer(client.send(outgoing, stream=True, follow_redirects=False), httpx)

    def close(self) -> None:
        client = self._pool.take()
        if client is not None:
            client.close()


class AsyncHttpxTransport:
    """Over an ``httpx.AsyncClient`` or an ``httpx2.AsyncClient``."""

    def __init__(self, pool: LoopPool[Any]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        client = self._pool.get()
        httpx = _module_of(client)
        with _HttpxErrors(httpx):
            outgoing = _httpx_request(client, httpx, request)
            return AsyncHttpxAnswer(
                await client.send(outgoing, stream=True, follow_redirects=False), httpx
            )

    async def close(self) -> None:
        client = self._pool.take()
        if client is not None:
            await client.aclose()


def _module_of(client: Any) -> Any:
    for cls in type(client).__mro__:  # an app may hand in a subclass of its own
        name = cls.__module__.partition(".")[0]
        if name in ("httpx", "httpx2"):
            return sys.modules[name]
    raise TypeError(f"{type(client)} is no client of httpx or httpx2")  # pragma: no cover


def _httpx_request(client: Any, httpx: Any, request: HTTPRequest) -> Any:
    outgoing = client.build_request(
        request.method,
        request.url,
        headers=request.headers,
        content=request.body,
        timeout=httpx.Timeout(
            connect=request.connect_timeout,
            read=request.read_timeout,
            write=request.read_timeout,
            pool=request.connect_timeout,
        ),
    )
    # The app's own client may keep cookies; ours are none of its business.
    outgoing.headers.pop("cookie", None)
    return outgoing


class _HttpxAnswerHead:
    def __init__(self, response: Any, httpx: Any) -> None:
        self._response = response
        self._httpx = httpx
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = Headers(response.headers.multi_items())


class HttpxAnswer(_HttpxAnswerHead):
    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        try:
            with _HttpxErrors(self._httpx):
                yield from self._response.iter_raw()
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()


class AsyncHttpxAnswer(_HttpxAnswerHead):
    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            with _HttpxErrors(self._httpx):
                async for chunk in self._response.aiter_raw():
                    yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        await self._response.aclose()


class _HttpxErrors:
    """Turns what httpx raises into our own."""

    __slots__ = ("_httpx",)

    def __init__(self, httpx: Any) -> None:
        self._httpx = httpx

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        httpx = self._httpx
        if isinstance(error, (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)):
            never_made = (
                httpx.ConnectError,
                httpx.ConnectTimeout,
                httpx.PoolTimeout,
                httpx.ProxyError,
                httpx.UnsupportedProtocol,
                httpx.LocalProtocolError,
                httpx.InvalidURL,
            )
            raise network_error(error, sent=not isinstance(error, never_made)) from error
