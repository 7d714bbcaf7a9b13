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

from .base import KEEPALIVE_SECONDS, Answer, AsyncAnswer, HTTPRequest, LoopPool, Pool
from .environment import Proxies, ssl_context
from .over_httpx import AsyncHttpxAnswer, HttpxAnswer, HttpxAnswerHead, Library, library_named

#: How many connections may idle.
MAX_IDLE = 100


def own_transport(library: str) -> OwnHttpxTransport:
    """A transport with connections of our own, over ``httpx`` or ``httpx2``."""
    return OwnHttpxTransport(
        Pool(lambda: Lanes(library_named(library), "HTTPTransport"), Lanes.close)
    )


def own_async_transport(library: str) -> AsyncOwnHttpxTransport:
    """:func:`own_transport`, for event loops."""
    return AsyncOwnHttpxTransport(
        LoopPool(lambda: Lanes(library_named(library), "AsyncHTTPTransport"), Lanes.aclose)
    )


class Lane:
    """A transport of the library's, for one call at a time.

    Attributes:
        since: when it began to idle, by ``time.monotonic()``.
    """

    __slots__ = ("proxy", "since", "transport")

    def __init__(self, transport: Any, proxy: str | None) -> None:
        self.transport = transport
        self.proxy = proxy
        self.since = 0.0


class Lanes:
    """As many lanes as there are calls at once. For one event loop, or for all threads.

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
        self._all: set[Lane] = set()
        self._idle: defaultdict[str | None, deque[Lane]] = defaultdict(deque)

    def take(self, url: str) -> Lane:
        """A lane to this URL: the one used last, whose connection is the likeliest to be open."""
        proxy = self._proxies.of(url)
        with self._lock:
            idle = self._idle[proxy]
            if idle:
                return idle.pop()
        transport = self._make(verify=ssl_context(), proxy=proxy, limits=self._limits)
        lane = Lane(transport, proxy)
        with self._lock:
            self._all.add(lane)
        return lane

    def put(self, lane: Lane) -> list[Lane]:
        """A lane whose answer has ended is free. To be closed are those that it gives, which
        nobody has needed for long: one or two, so that no call pays for all of a burst."""
        lane.since = now = time.monotonic()
        unneeded: list[Lane] = []
        with self._lock:
            if self.closed:
                return [lane]
            idle = self._idle[lane.proxy]
            idle.append(lane)
            while len(unneeded) < 2 and (
                len(idle) > MAX_IDLE or now - idle[0].since > KEEPALIVE_SECONDS
            ):
                unneeded.append(idle.popleft())
            self._all.difference_update(unneeded)
        return unneeded

    def closed_error(self) -> Exception:
        """What a call fails with that has come too late, in the library's words."""
        return self.library.httpx.ReadError("The client was closed.")

    def drop(self, lane: Lane) -> None:
        """A lane whose call went wrong or was given up is to be closed."""
        with self._lock:
            self._all.discard(lane)

    def close(self) -> None:
        """Close all connections, those of answers under way included."""
        _close(self._take_all())

    async def aclose(self) -> None:
        """:meth:`close`, on its event loop."""
        await _aclose(self._take_all())

    def _take_all(self) -> list[Lane]:
        with self._lock:
            self.closed = True
            lanes = list(self._all)
            self._all.clear()
            self._idle.clear()
        return lanes


def _close(lanes: Iterable[Lane]) -> None:
    with ExitStack() as closing:  # where one of them fails, the others are closed all the same
        for lane in lanes:
            closing.callback(lane.transport.close)


async def _aclose(lanes: Iterable[Lane]) -> None:
    async with AsyncExitStack() as closing:
        for lane in lanes:
            closing.push_async_callback(lane.transport.aclose)


def _request_of(library: Library, request: HTTPRequest) -> Any:
    # In a frame of its own: it holds the secret key as it is.
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return library.request(request, headers)


class OwnHttpxTransport:
    """Over lanes that all threads share."""

    def __init__(self, pool: Pool[Lanes]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> Answer:
        lanes = self._pool.get()
        library = lanes.library
        try:
            lane = lanes.take(request.url)
            try:
                outgoing = _request_of(library, request)
                response = lane.transport.handle_request(outgoing)
            except BaseException:
                lanes.drop(lane)
                lane.transport.close()
                raise
            answer = OwnHttpxAnswer(response, lanes, lane)
            if lanes.closed:
                answer.close()
                raise lanes.closed_error()
            return answer
        except BaseException as error:
            library.failures.seen(error)
            raise

    def close(self) -> None:
        self._pool.close()


class AsyncOwnHttpxTransport:
    """Over the lanes of each event loop."""

    def __init__(self, pool: LoopPool[Lanes]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        lanes = self._pool.get()
        library = lanes.library
        try:
            lane = lanes.take(request.url)
            try:
                outgoing = _request_of(library, request)
                response = await lane.transport.handle_async_request(outgoing)
            except BaseException:
                lanes.drop(lane)
                await lane.transport.aclose()
                raise
            answer = AsyncOwnHttpxAnswer(response, lanes, lane)
            if lanes.closed:
                await answer.close()
                raise lanes.closed_error()
            return answer
        except BaseException as error:
            library.failures.seen(error)
            raise

    async def close(self) -> None:
        await self._pool.close()


# An answer that was read to its end gives its lane back, and any other closes it: what the library
# has in hand of it is then nobody's to find out.


class _OnLane(HttpxAnswerHead):
    def __init__(self, response: Any, lanes: Lanes, lane: Lane) -> None:
        super().__init__(response, lanes.library)
        self._lanes = lanes
        self._lane: Lane | None = lane

    def _leave(self) -> Lane | None:
        """The lane, for whoever asks first."""
        lane, self._lane = self._lane, None
        return lane


class OwnHttpxAnswer(_OnLane, HttpxAnswer):
    def _ended(self) -> None:
        super().close()
        if (lane := self._leave()) is not None:
            _close(self._lanes.put(lane))

    def close(self) -> None:
        if (lane := self._leave()) is None:
            return
        self._lanes.drop(lane)
        try:
            super().close()
        finally:
            lane.transport.close()


class AsyncOwnHttpxAnswer(_OnLane, AsyncHttpxAnswer):
    async def _ended(self) -> None:
        await super().close()
        if (lane := self._leave()) is not None:
            await _aclose(self._lanes.put(lane))

    async def close(self) -> None:
        if (lane := self._leave()) is None:
            return
        self._lanes.drop(lane)
        try:
            await super().close()
        finally:
            await lane.transport.aclose()
