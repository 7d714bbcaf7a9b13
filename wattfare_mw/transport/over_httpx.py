"""httpx and httpx2, which differ in name only."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from ..web import Headers
from .base import (
    KEEPALIVE_SECONDS,
    Answer,
    AsyncAnswer,
    Failures,
    HTTPRequest,
    LoopPool,
    Pool,
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


def close_client(client: Any) -> None:
    client.close()


async def close_async_client(client: Any) -> None:
    await client.aclose()


class HttpxTransport:
    """Over an ``httpx.Client`` or an ``httpx2.Client``."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> Answer:
        client = self._pool.get()
        httpx = _module_of(client)
        with _failures(httpx):
            outgoing = _httpx_request(client, httpx, request)
            return HttpxAnswer(client.send(outgoing, **_SENDING), httpx)

    def close(self) -> None:
        self._pool.close()


class AsyncHttpxTransport:
    """Over an ``httpx.AsyncClient`` or an ``httpx2.AsyncClient``."""

    def __init__(self, pool: LoopPool[Any]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        client = self._pool.get()
        httpx = _module_of(client)
        with _failures(httpx):
            outgoing = _httpx_request(client, httpx, request)
            return AsyncHttpxAnswer(await client.send(outgoing, **_SENDING), httpx)

    async def close(self) -> None:
        await self._pool.close()


# `auth`: the app's own client may have credentials for other services; ours are in the request.
_SENDING: dict[str, Any] = {"stream": True, "follow_redirects": False, "auth": None}


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
            with _failures(self._httpx):
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
            with _failures(self._httpx):
                async for chunk in self._response.aiter_raw():
                    yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        await self._response.aclose()


@cache
def _failures(httpx: Any) -> Failures:
    return Failures(
        (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError),
        (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.ProxyError,
            httpx.UnsupportedProtocol,
            httpx.InvalidURL,
        ),
    )
