"""aiohttp: the fast one."""

from __future__ import annotations

import asyncio
import io
import urllib.request
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl

from ..web import Headers
from .base import KEEPALIVE_SECONDS, AsyncAnswer, Failures, HTTPRequest, LoopPool, ssl_context

# Larger bodies are written in pieces, so that the loop goes on meanwhile (bytes).
_PIECEMEAL = 2**20


def own_session() -> Any:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=ssl_context()
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Not `trust_env`: that looks for the proxy in a thread, for each request, and lets a
        # ~/.netrc get in the way of our credentials. Our own look is taken once.
        trust_env=False,
    )


async def close_session(session: Any) -> None:
    await session.close()


class AiohttpTransport:
    """Over an ``aiohttp.ClientSession``; ``own``: one that this module has set up."""

    def __init__(self, pool: LoopPool[Any], *, own: bool = False) -> None:
        self._pool = pool
        self._own = own
        self._proxies: dict[tuple[str, str], str | None] = {}

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        session = self._pool.get()
        headers = dict(request.headers)
        if self._own:
            options = {"proxy": self._proxy(request.url)}
        else:
            options = {"middlewares": _with_our_credentials_only(session, headers)}
        with _FAILURES:
            async with asyncio.timeout(_head_timeout(request)) as deadline:
                response = await session.request(
                    request.method,
                    yarl.URL(request.url, encoded=True),
                    headers=headers,
                    data=_body(request, deadline),
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
        await self._pool.close()

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc)
        if key not in self._proxies:
            self._proxies[key] = _environment_proxy(*key)
        return self._proxies[key]


def _environment_proxy(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _with_our_credentials_only(session: Any, headers: dict[str, str]) -> tuple[Any, ...]:
    """The session's own middlewares, and behind them one with the last word: a session of the
    app's may have cookies, and credentials for other services (from a ~/.netrc, too, where it
    trusts the environment), which aiohttp refuses to see beside an Authorization of ours."""
    authorization = headers.pop("authorization")

    async def middleware(outgoing: Any, handler: Any) -> Any:
        outgoing.headers.popall("cookie", None)
        outgoing.headers["authorization"] = authorization
        return await handler(outgoing)

    return (*getattr(session, "_middlewares", ()), middleware)


# aiohttp bounds the silence of a service that does not answer, and not that of one that does not
# read: while a body is being written nothing would ever time out.


def _head_timeout(request: HTTPRequest) -> float | None:
    if request.connect_timeout is None or request.read_timeout is None:
        return None
    return request.connect_timeout + request.read_timeout


def _body(request: HTTPRequest, deadline: asyncio.Timeout) -> Any:
    if request.body is None or len(request.body) <= _PIECEMEAL:
        return request.body
    return _Pieces(request.body, deadline, request.read_timeout)


class _Pieces(io.BytesIO):
    """A body that is written in pieces; each that is taken puts the deadline off."""

    def __init__(self, body: bytes, deadline: asyncio.Timeout, silence: float | None) -> None:
        super().__init__(body)
        self._deadline = deadline
        self._silence = silence

    def read(self, size: int | None = -1, /) -> bytes:
        if self._silence is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._silence)
        return super().read(size)


class AiohttpAnswer:
    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Mapping[str, str] = Headers(response.headers.items())
        # aiohttp's compiled parser closes the connection of a body that is no HTTP any more, and
        # tells it to nobody who waits for the rest.
        connection = response.connection  # None: all of it is here
        self._closed: asyncio.Future[None] | None = connection and getattr(
            connection.protocol, "closed", None
        )
        if self._closed is not None:
            self._closed.remove_done_callback(_take)
            self._closed.add_done_callback(self._tell)

    def _tell(self, closed: asyncio.Future[None]) -> None:
        _take(closed)
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The body is no HTTP any more."))

    async def read(self) -> bytes:
        try:
            with _FAILURES:
                return await self._response.read()
        finally:
            await self.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            with _FAILURES:
                async for chunk in self._response.content.iter_any():
                    yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        # An answer that is complete has given its connection back already; else this closes it.
        self._response.close()
        if self._closed is not None and self._closed.remove_done_callback(self._tell):
            self._closed.add_done_callback(_take)


def _take(closed: asyncio.Future[None]) -> None:
    # An error that nobody takes, of a connection that idles, would be logged.
    if not closed.cancelled():
        closed.exception()


_FAILURES = Failures(
    (aiohttp.ClientError, TimeoutError),
    (
        aiohttp.ClientConnectorError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.ClientHttpProxyError,
        aiohttp.InvalidURL,
        aiohttp.NonHttpUrlClientError,
    ),
)
