"""The transport over aiohttp. It is the fastest transport."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import WattfareError
from ..headers import Headers, Raw
from . import direct
from .base import (
    KEEPALIVE_SECONDS,
    MAX_BODY_BYTES,
    AsyncHTTPResponse,
    BodyParts,
    Failures,
    HTTPRequest,
    LoopPool,
)
from .environment import HTTP_PROXIES, Proxies, ssl_context
from .idle import NEVER, IdleTimer, IdleWait

# Bodies with more bytes than this are written in pieces, so that the event loop stays free.
_PIECEMEAL = 2**20


#: The maximum number of interim responses, such as "103 Early Hints", before an answer. Without a
#: limit, a server could send them forever.
MAX_INTERIM = 10


class _Protocol(ResponseHandler):
    """aiohttp's protocol, with a limit on interim responses."""

    _interim = 0

    async def read(self) -> Any:
        message, content = await super().read()
        if 100 <= message.code < 200 and message.code != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise aiohttp.ClientPayloadError("The answer has too many interim responses.")
        else:
            self._interim = 0
        return message, content


def own_session() -> Any:
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=ssl_context()
    )
    # aiohttp has no public option for the protocol class.
    vars(connector)["_factory"] = partial(_Protocol, loop=asyncio.get_running_loop())
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # `trust_env` would look up the proxy in a thread for each request, and a ~/.netrc would
        # conflict with our credentials. We look up the proxy once.
        trust_env=False,
    )


class LoopSession:
    """A session, its event loop and its timers."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._timers: dict[float, IdleTimer] = {}
        self.direct = direct.Direct(session)

    def timer(self, limit: float) -> IdleTimer:
        """The timer for waits of at most this many seconds."""
        timer = self._timers.get(limit)
        if timer is None:
            timer = self._timers[limit] = IdleTimer(self._loop, limit)
        return timer

    async def close(self) -> None:
        await self.session.close()


class AiohttpTransport:
    """A transport over an ``aiohttp.ClientSession``. ``own``: True if this module has created the
    session."""

    def __init__(self, pool: LoopPool[LoopSession], *, own: bool = False) -> None:
        self._pool = pool
        self._own = own
        self._direct = own and direct.fits(aiohttp.__version__)
        self._proxies = Proxies(HTTP_PROXIES)

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse:
        loop_session = self._pool.get()
        body = request.body
        try:
            if (
                self._direct
                and body is not None
                and len(body) <= _PIECEMEAL
                and request.method == "POST"
                and self._proxies.of(request.url) is None
            ):
                return await _send_directly(loop_session, request)
            return await self._ask(loop_session, request)
        except BaseException as error:
            _FAILURES.convert(error)
            raise

    async def _ask(self, loop_session: LoopSession, request: HTTPRequest) -> AsyncHTTPResponse:
        # aiohttp's own read timeout starts again with each piece of the head.
        async with asyncio.timeout(_head_timeout(request)) as deadline:
            body = _body(request, deadline)
            response = await self._request(loop_session.session, request, body)
        connection = response.connection  # None if the answer is complete
        protocol = None if connection is None else connection.protocol
        timer = None
        if protocol is not None and request.read_timeout is not None:
            protocol.read_timeout = None  # aiohttp would set a new timer for each piece
            timer = loop_session.timer(request.read_timeout)
        head = response.status, response.raw_headers
        return AiohttpResponse(head, response.content, protocol, timer, response.close)

    async def _request(self, session: Any, request: HTTPRequest, body: Any) -> Any:
        headers = request.headers
        if self._own:
            options = {"proxy": self._proxies.of(request.url)}
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


async def _send_directly(loop_session: LoopSession, request: HTTPRequest) -> AsyncHTTPResponse:
    sent = await loop_session.direct.send(request, _timeout(request.connect_timeout, None))
    protocol = sent.protocol
    timer = None if request.read_timeout is None else loop_session.timer(request.read_timeout)
    wait = None if timer is None else _IdleWait(timer, protocol)
    try:
        message, content = await sent.head()
    finally:
        if wait is not None:
            wait.end()
    if content.is_eof():
        protocol = None
    head = message.code, message.raw_headers
    return AiohttpResponse(head, content, protocol, timer, sent.close)


def _with_our_credentials_only(session: Any, headers: dict[str, str]) -> tuple[Any, ...]:
    """The session's own middlewares, followed by one that sets our headers. The app's session may
    have cookies and credentials for other services, even from a ~/.netrc. aiohttp refuses such
    credentials together with our Authorization header."""
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


# aiohttp has no timeout for writing a body to a service that does not read it. A body that fits
# into the buffers is written at once, and needs no timeout.


def _head_timeout(request: HTTPRequest) -> float | None:
    if request.connect_timeout is None or request.read_timeout is None:
        return None
    return request.connect_timeout + request.read_timeout


def _body(request: HTTPRequest, deadline: asyncio.Timeout) -> Any:
    body = request.body
    if body is None or len(body) <= _PIECEMEAL:
        return body
    return _Pieces(body, deadline, request.read_timeout)


class _Pieces(io.BytesIO):
    """A body that is written in pieces. Each written piece extends the deadline."""

    def __init__(self, body: bytes, deadline: asyncio.Timeout, limit: float | None) -> None:
        super().__init__(body)
        self._deadline = deadline
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        if self._limit is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._limit)
        return super().read(size)


class AiohttpResponse:
    """An answer.

    Args:
        head: has the status and the headers.
        content: aiohttp's stream of its body.
        protocol: the connection that sends the rest; None if the answer is complete.
        timer: limits the wait for each piece.
        close: releases the connection.
    """

    def __init__(
        self,
        head: tuple[int, Raw],
        content: Any,
        protocol: Any,
        timer: IdleTimer | None,
        close: Callable[[], None],
    ) -> None:
        self.status, raw = head
        self.headers = Headers.of_response(raw)
        self._content = content
        self._let_go = close
        self._is_here = protocol is None
        self._closed: asyncio.Future[None] | None = None
        self._wait: _IdleWait | None = None
        if protocol is None:
            return
        # If a body is not valid HTTP, aiohttp's compiled parser closes the connection, but does not
        # wake the reader.
        self._closed = getattr(protocol, "closed", None)
        if self._closed is not None:
            self._closed.remove_done_callback(_take)
            self._closed.add_done_callback(self._wake_reader)
        if timer is not None:
            self._wait = _IdleWait(timer, content)

    def _wake_reader(self, closed: asyncio.Future[None]) -> None:
        _take(closed)
        content = self._content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The body is not valid HTTP."))

    async def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        part = await self.read_some()
        if self._is_here and len(part) <= limit:
            return part
        parts = BodyParts(limit)
        try:
            parts.add(part)
            while part and not self._is_here:
                part = await self.read_some()
                parts.add(part)
        except WattfareError:
            self._close()
            raise
        return parts.join()

    async def read_some(self) -> bytes:
        wait = self._wait
        if wait is not None:
            wait.since = wait.now()
        try:
            try:
                chunk = await self._content.readany()
            except RuntimeError as error:
                # The connection has just been closed, and `_wake_reader` has not been called yet.
                if self._closed is None or not self._closed.done():
                    raise
                raise aiohttp.ClientPayloadError(str(error)) from None
        except BaseException as error:
            self._close()
            _FAILURES.convert(error)
            raise
        if not chunk:
            self._close()
        elif wait is not None:
            wait.since = NEVER
        return chunk

    async def close(self) -> None:
        self._close()

    def _close(self) -> None:
        self._let_go()
        if self._wait is not None:
            self._wait.end()
        if self._closed is not None and self._closed.remove_done_callback(self._wake_reader):
            self._closed.add_done_callback(_take)


class _IdleWait(IdleWait):
    """A wait for data from a connection, or from a body."""

    __slots__ = ("_awaited",)

    def __init__(self, timer: IdleTimer, awaited: Any) -> None:
        super().__init__(timer)
        self._awaited = awaited

    def timed_out(self) -> None:
        if self._awaited.exception() is None:
            self._awaited.set_exception(aiohttp.SocketTimeoutError("No more data arrived."))


def _take(closed: asyncio.Future[None]) -> None:
    # Retrieve the error of an idle connection, so that asyncio does not log it.
    if not closed.cancelled():
        closed.exception()


_FAILURES = Failures(
    (aiohttp.ClientError, HttpProcessingError, TimeoutError),
    (
        aiohttp.ClientConnectorError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.ClientHttpProxyError,
        aiohttp.InvalidURL,
        aiohttp.NonHttpUrlClientError,
    ),
)
