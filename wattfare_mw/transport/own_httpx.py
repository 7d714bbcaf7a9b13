"""Our own connections over httpx or httpx2. Each is a transport of the library with one connection,
for one call at a time.

The pool of a client checks all its connections at the start and the end of each request, with a
system call for each idle connection. With 32 concurrent calls, this takes as long as everything
else. A pool with one connection avoids this. We do not need the other features of a client, such as
redirects, cookies, hooks and log lines.
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
from .head_limit import HeadLimit
from .over_httpx import AsyncHttpxResponse, HttpxResponse, HttpxResponseBase, Library, library_named

#: The maximum number of idle connections.
MAX_IDLE = 100


def own_transport(library: str) -> OwnHttpxTransport:
    """A transport with built-in connections, over ``httpx`` or ``httpx2``."""
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
    """A transport of the library with one connection, for one call at a time.

    Attributes:
        head: limits the head of each answer.
        since: when the connection became idle, by ``time.monotonic()``.
    """

    __slots__ = ("head", "proxy", "since", "transport")

    def __init__(self, transport: Any, proxy: str | None, head: HeadLimit) -> None:
        self.transport = transport
        self.proxy = proxy
        self.head = head
        self.since = 0.0


class HTTPConnections:
    """The connections of one event loop, or of all threads. Each call in progress has one
    connection.

    Attributes:
        closed: True after :meth:`close`. A call that was connecting at that moment must close its
            own connection.
    """

    def __init__(self, library: Library, kind: str) -> None:
        self.library = library
        self._make = getattr(library.httpx, kind)
        # There is no limit on concurrent calls here. The app's server has one, and a second limit
        # could cause a deadlock.
        self._limits = library.httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS)
        self._proxies = Proxies()
        self._lock = threading.Lock()
        self.closed = False
        self._all: set[HTTPConnection] = set()
        self._idle: defaultdict[str | None, deque[HTTPConnection]] = defaultdict(deque)

    def take(self, url: str) -> HTTPConnection:
        """A connection for this URL. It takes the one that was used last, because that one is most
        likely still open."""
        proxy = self._proxies.of(url)
        with self._lock:
            idle = self._idle[proxy]
            if idle:
                return idle.pop()
        certificates = ssl_context()
        try:
            transport = self._make(verify=certificates, proxy=proxy, limits=self._limits)
        except (ImportError, ValueError):  # the library cannot use this kind of proxy
            if proxy is None:
                raise
            raise unusable_proxy(url) from None
        head = HeadLimit(self.library.httpx)
        head.apply(transport)
        connection = HTTPConnection(transport, proxy, head)
        with self._lock:
            self._all.add(connection)
        return connection

    def put(self, connection: HTTPConnection) -> list[HTTPConnection]:
        """Free a connection whose answer was read completely. Returns at most two connections that
        have been idle for long, which the caller must close. With this limit, one call does not
        have to close the connections of a whole burst."""
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
        """The library's error for a call on a closed client."""
        return self.library.httpx.ReadError("The client was closed.")

    def drop(self, connection: HTTPConnection) -> None:
        """Remove a connection whose call failed or was abandoned. The caller closes it."""
        with self._lock:
            self._all.discard(connection)

    def close(self) -> None:
        """Close all connections, including those of answers in progress."""
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
    with ExitStack() as closing:  # if one fails, close the others anyway
        for connection in connections:
            closing.callback(connection.transport.close)


async def _aclose(connections: Iterable[HTTPConnection]) -> None:
    async with AsyncExitStack() as closing:
        for connection in connections:
            closing.push_async_callback(connection.transport.aclose)


def _request_of(library: Library, request: HTTPRequest) -> Any:
    # A separate function, because its local variables have the unmasked secret key.
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return library.request(request, headers)


class OwnHttpxTransport:
    """The sync transport. All threads share its connections."""

    def __init__(self, pool: Pool[HTTPConnections]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> HTTPResponse:
        connections = self._pool.get()
        library = connections.library
        try:
            connection = connections.take(request.url)
            try:
                outgoing = _request_of(library, request)
                connection.head.begin()
                response = connection.transport.handle_request(outgoing)
                connection.head.end()
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
            library.failures.convert(error)
            raise

    def close(self) -> None:
        self._pool.close()


class AsyncOwnHttpxTransport:
    """The async transport. Each event loop has its own connections."""

    def __init__(self, pool: LoopPool[HTTPConnections]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse:
        connections = self._pool.get()
        library = connections.library
        try:
            connection = connections.take(request.url)
            try:
                outgoing = _request_of(library, request)
                connection.head.begin()
                response = await connection.transport.handle_async_request(outgoing)
                connection.head.end()
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
            library.failures.convert(error)
            raise

    async def close(self) -> None:
        await self._pool.close()


# Reuse a connection only if its response was read completely. Otherwise, close it, because the
# library may still have a part of the body.


class _OnConnection(HttpxResponseBase):
    def __init__(
        self, response: Any, connections: HTTPConnections, connection: HTTPConnection
    ) -> None:
        super().__init__(response, connections.library)
        self._connections = connections
        self._connection: HTTPConnection | None = connection

    def _take_connection(self) -> HTTPConnection | None:
        """Take the connection from the response. Only the first caller gets it."""
        connection, self._connection = self._connection, None
        return connection


class OwnHttpxResponse(_OnConnection, HttpxResponse):
    def _ended(self) -> None:
        super().close()
        if (connection := self._take_connection()) is not None:
            _close(self._connections.put(connection))

    def close(self) -> None:
        if (connection := self._take_connection()) is None:
            return
        self._connections.drop(connection)
        try:
            super().close()
        finally:
            connection.transport.close()


class AsyncOwnHttpxResponse(_OnConnection, AsyncHttpxResponse):
    async def _ended(self) -> None:
        await super().close()
        if (connection := self._take_connection()) is not None:
            await _aclose(self._connections.put(connection))

    async def close(self) -> None:
        if (connection := self._take_connection()) is None:
            return
        self._connections.drop(connection)
        try:
            await super().close()
        finally:
            await connection.transport.aclose()
