"""aiohttp: the fast one."""

from __future__ import annotations

import asyncio
import io
import urllib.request
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl

from ..web import Headers
from .base import KEEPALIVE_SECONDS, AsyncAnswer, Chunked, Failures, HTTPRequest, LoopPool, ssl_context

# What the buffers below take in at once (bytes).
_SMALL = 2**15
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
        body = request.body
        try:
            if body is None or len(body) <= _SMALL:
                response = await self._request(request, body)
            else:
                async with asyncio.timeout(_head_timeout(request)) as deadline:
                    response = await self._request(request, _body(request, body, deadline))
        except BaseException as error:
            _FAILURES.seen(error)
            raise
        return AiohttpAnswer(response, request.read_timeout)

    async def _request(self, request: HTTPRequest, body: Any) -> Any:
        session = self._pool.get()
        headers = request.headers
        if self._own:
            options = {"proxy": self._proxy(request.url)}
        else:
            headers = headers.copy()
            options = {"middlewares": _with_our_credentials_only(session, headers)}
        return await session.request(
            request.method,
            _url(request.url),
            headers=headers,
            data=body,
            allow_redirects=False,
            auto_decompress=False,
            raise_for_status=False,
            timeout=_timeout(request.connect_timeout, request.read_timeout),
            **options,
        )

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


@lru_cache(maxsize=64)
def _url(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=True)


@lru_cache(maxsize=64)
def _timeout(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=read)


# aiohttp bounds the silence of a service that does not answer, and not that of one that does not
# read: while a body is being written nothing would ever time out. One that fits into the buffers
# is written at once.


def _head_timeout(request: HTTPRequest) -> float | None:
    if request.connect_timeout is None or request.read_timeout is None:
        return None
    return request.connect_timeout + request.read_timeout


def _body(request: HTTPRequest, body: bytes, deadline: asyncio.Timeout) -> Any:
    if len(body) <= _PIECEMEAL:
        return body
    return _Pieces(body, deadline, request.read_timeout)


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


class AiohttpAnswer(Chunked):
    """An answer, and how long it may be silent."""

    def __init__(self, response: Any, patience: float | None) -> None:
        self._response = response
        self.status: int = response.status
        self.headers = Headers.of_bytes(response.raw_headers)
        # aiohttp's compiled parser closes the connection of a body that is no HTTP any more, and
        # tells it to nobody who waits for the rest.
        connection = response.connection
        self._closed: asyncio.Future[None] | None = None
        self._silence: _Silence | None = None
        self._is_here = connection is None  # all of it: aiohttp has let go of the connection
        if connection is None:
            return
        self._closed = getattr(connection.protocol, "closed", None)
        if self._closed is not None:
            self._closed.remove_done_callback(_take)
            self._closed.add_done_callback(self._tell)
        if patience is not None:
            connection.protocol.read_timeout = None  # it would begin anew at each piece
            self._silence = _Silence(patience, response.content)

    def _tell(self, closed: asyncio.Future[None]) -> None:
        _take(closed)
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The body is no HTTP any more."))

    async def read(self) -> bytes:
        part = await self.read_some()
        if self._is_here:
            return part
        parts: list[bytes] = []
        while part:
            parts.append(part)
            part = await self.read_some()
        return b"".join(parts)

    async def read_some(self) -> bytes:
        silence = self._silence
        if silence is not None:
            silence.listen()
        try:
            chunk = await self._response.content.readany()
        except BaseException as error:
            self._close()
            _FAILURES.seen(error)
            raise
        if silence is not None:
            silence.pause()  # whoever takes it may take its time
        if not chunk:
            self._close()
        return chunk

    async def close(self) -> None:
        self._close()

    def _close(self) -> None:
        # An answer that is complete has given its connection back already; else this closes it.
        self._response.close()
        if self._silence is not None:
            self._silence.end()
        if self._closed is not None and self._closed.remove_done_callback(self._tell):
            self._closed.add_done_callback(_take)


class _Silence:
    """Ends a body that has nothing to say for so long (seconds). aiohttp's own bound sets a timer
    at each piece, which takes longer than passing the piece on: this one is set once, and looks,
    when it is over, when something was last heard."""

    __slots__ = ("_content", "_limit", "_listening", "_loop", "_since", "_timer")

    def __init__(self, limit: float, content: Any) -> None:
        self._limit = limit
        self._content = content
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit, self._look)
        self.listen()

    def listen(self) -> None:
        """From now on we wait for more."""
        self._listening = True
        self._since = self._loop.time()

    def pause(self) -> None:
        """There is something; whoever takes it may take its time."""
        self._listening = False

    def end(self) -> None:
        """There is nothing to wait for any more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._limit
        if self._listening:
            left -= self._loop.time() - self._since
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._content.exception() is None:
            self._content.set_exception(aiohttp.SocketTimeoutError("The body fell silent."))


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
