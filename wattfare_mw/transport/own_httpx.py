"""Our own connections through httpx or httpx2: the library's transports, each with one connection
and one call at a time.

The pool of a client goes through all of its connections where a request begins and again where it
ends, and asks the system of each that idles whether it is still there: at 32 calls at once it takes
as long as all the rest. A pool of one does not, and what a client does beside it (redirects,
cookies, hooks, log lines) is what ours never need.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from .base import KEEPALIVE_SECONDS, AsyncHTTPResponse, HTTPRequest, HTTPResponse, LoopPool, Pool
from .environment import Proxies, ssl_context, unusable_proxy
from .over_httpx import AsyncHttpxResponse, HttpxResponse, HttpxResponseBase, Library, library_named

#: How many connections may idle.
MAX_IDLE = 100


def own_transport(library: str) -> OwnHttpxTransport:
    """A transport with connections of our own, over ``httpx`` or ``httpx2``."""
    return OwnHttpxTransport(
        Pool(
            lambda: HTTPConnections(library_named(library), "HTTPTransport"), HTTPConnections.close
        )
    )


def own_async_transport(library: str) -> AsyncOwnHttpxTransport:
    """:func:`own_transport`, for event loops."""
    return AsyncOwnHttpxTransport(
        LoopPool(
            lambda: HTTPConnections(library_named(library), "AsyncHTTPTransport"),
            HTTPConnections.aclose,
        )
    )


class HTTPConnection:
    """A transport of the library's, for one call at a time.

    Attributes:
        since: when it began to idle, by ``time.monotonic()``.
    """

    __slots__ = ("proxy", "since", "transport")

    def __init__(self, transport: Any, proxy: str | None) -> None:
        self.transport = transport
        self.proxy = proxy
        self.since = 0.0


class HTTPConnections:
    """As many connections as there are calls at once. For one event loop, or for all threads.

    Attributes:
        closed: for good. A connection that was being made at that time was in nobody's hands: its
            call has to close it.
    """

    def __init__(self, library: Library, kind: str) -> None:
        self.library = library
        self._make = getattr(library.httpx, kind)
        # Nothing here bounds how much runs at once: the app's server does, and a second bound
        # could only deadlock it.
        self._limits = library.httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS)
        self._proxies = Proxies()
        self._lock = threading.Lock()
        self.closed = False
        self._all: set[HTTPConnection] = set()
        self._idle: defaultdict[str | None, deque[HTTPConnection]] = defaultdict(deque)

    def take(self, url: str) -> HTTPConnection:
        """A connection for this URL: the one used last, which is the most likely to be open."""
        proxy = self._proxies.of(url)
        with self._lock:
            idle = self._idle[proxy]
            if idle:
                return idle.pop()
        certificates = ssl_context()
        try:
            transport = self._make(verify=certificates, proxy=proxy, limits=self._limits)
        except (ImportError, ValueError):  # this httpx cannot use a proxy of this kind
            if proxy is None:
                raise
            raise unusable_proxy(url) from None
        connection = HTTPConnection(transport, proxy)
        with self._lock:
            self._all.add(connection)
        return connection

    def put(self, connection: HTTPConnection) -> list[HTTPConnection]:
        """A connection whose answer has ended is free. To be closed are those that it gives, which
        nobody has needed for long: one or two, so that no call pays for all of a burst."""
        connection.since = now = time.monotonic()
        unneeded: list[HTTPConnection] = []
        with self._lock:
            if self.closed:
                return [connection]
            idle = self._idle[connection.proxy]
            idle.append(connection)
            while len(unneeded) < 2 and (
                len(idle) > MAX_IDLE or now - idle[0].since > KEEPALIVE_SECONDS
            ):
                unneeded.append(idle.popleft())
            self._all.difference_update(unneeded)
        return unneeded

    def closed_error(self) -> Exception:
        """What a call fails with that has come too late, in the library's words."""
        return self.library.httpx.ReadError("The client was closed.")

    def drop(self, connection: HTTPConnection) -> None:
        """A connection whose call went wrong or was given up is to be closed."""
        with self._lock:
            self._all.discard(connection)

    def close(self) -> None:
        """Close all connections, those of answers under way included."""
        _close(self._take_all())

    async def aclose(self) -> None:
        """:meth:`close`, on its event loop."""
        await _aclose(self._take_all())

    def _take_all(self) -> list[HTTPConnection]:
        with self._lock:
            self.closed = True
            connections = list(self._all)
            self._all.clear()
            self._idle.clear()
        return connections


def _close(connections: Iterable[HTTPConnection]) -> None:
    with ExitStack() as closing:  # where one of them fails, the others are closed all the same
        for connection in connections:
            closing.callback(connection.transport.close)


async def _aclose(connections: Iterable[HTTPConnection]) -> None:
    async with AsyncExitStack() as closing:
        for connection in connections:
            closing.push_async_callback(connection.transport.aclose)


def _request_of(library: Library, request: HTTPRequest) -> Any:
    # In a frame of its own: it holds the secret key as it is.
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return library.request(request, headers)


class OwnHttpxTransport:
    """Over connections that all threads share."""

    def __init__(self, pool: Pool[HTTPConnections]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> HTTPResponse:
        connections = self._pool.get()
        library = connections.library
        try:
            connection = connections.take(request.url)
            try:
                outgoing = _request_of(library, request)
                response = connection.transport.handle_request(outgoing)
            except BaseException:
                connections.drop(connection)
                connection.transport.close()
                raise
            answer = OwnHttpxResponse(response, connections, connection)
            if connections.closed:
                answer.close()
                raise connections.closed_error()
            return answer
        except BaseException as error:
            library.failures.seen(error)
            raise

    def close(self) -> None:
        self._pool.close()


class AsyncOwnHttpxTransport:
    """Over the connections of each event loop."""

    def __init__(self, pool: LoopPool[HTTPConnections]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse:
        connections = self._pool.get()
        library = connections.library
        try:
            connection = connections.take(request.url)
            try:
                outgoing = _request_of(library, request)
                response = await connection.transport.handle_async_request(outgoing)
            except BaseException:
                connections.drop(connection)
                await connection.transport.aclose()
                raise
            answer = AsyncOwnHttpxResponse(response, connections, connection)
            if connections.closed:
                await answer.close()
                raise connections.closed_error()
            return answer
        except BaseException as error:
            library.failures.seen(error)
            raise

    async def close(self) -> None:
        await self._pool.close()


# A response that was read to its end gives its connection back. Any other response closes it,
# because the library may still hold a part of the body.


class _OnConnection(HttpxResponseBase):
    def __init__(
        self, response: Any, connections: HTTPConnections, connection: HTTPConnection
    ) -> None:
        super().__init__(response, connections.library)
        self._connections = connections
        self._connection: HTTPConnection | None = connection

    def _leave(self) -> HTTPConnection | None:
        """The connection, for whoever asks first."""
        connection, self._connection = self._connection, None
        return connection


class OwnHttpxResponse(_OnConnection, HttpxResponse):
    def _ended(self) -> None:
        super().close()
        if (connection := self._leave()) is not None:
            _close(self._connections.put(connection))

    def close(self) -> None:
        if (connection := self._leave()) is None:
            return
        self._connections.drop(connection)
        try:
            super().close()
        finally:
            connection.transport.close()


class AsyncOwnHttpxResponse(_OnConnection, AsyncHttpxResponse):
    async def _ended(self) -> None:
        await super().close()
        if (connection := self._leave()) is not None:
            await _aclose(self._connections.put(connection))

    async def close(self) -> None:
        if (connection := self._leave()) is None:
            return
        self._connections.drop(connection)
        try:
            await super().close()
        finally:
            await connection.transport.aclose()
