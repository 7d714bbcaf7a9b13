"""Private: reads request bodies within a limit. Under ASGI, it also detects that a client has
left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from .body_memory import BodyClaim
from .errors import WattfareError, invalid_request
from .offload import LARGE_BODY
from .transport.base import LoopPool
from .transport.idle import NEVER, IdleTimer, IdleWait

#: How long a call runs before the check for a disconnected client starts, in seconds. The check
#: needs a task, and a fast answer does not need the check.
WATCH_AFTER = 0.1
#: How long a body may take to arrive, in seconds: a base time, plus one second for each
#: :data:`BODY_BYTES_PER_SECOND`. A body is also refused after a pause of the base time, even if it
#: came fast before.
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 10_000
#: The memory that a message takes besides its body.
_MESSAGE_BYTES = 500


T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


def check_length(content_length: str | None, limit: int) -> bool:
    """Refuse a body if its announced length is above the limit. Returns True if the body has at
    most :data:`.offload.LARGE_BODY` bytes; False if it is larger or its length is unknown.

    Raises:
        WattfareError: ``invalid_request``, 413; the body is too large.
    """
    if content_length is None or not content_length.isdecimal():
        return False
    length = int(content_length[:20])
    if length > limit:
        raise too_large(limit)
    return length <= LARGE_BODY


def too_large(limit: int) -> WattfareError:
    """The error for a body above this number of bytes."""
    return invalid_request(f"The body is larger than {limit:,} bytes.", 413)


class BodyWait(IdleWait):
    """The wait for a body. If it takes too long, the reading task is cancelled."""

    __slots__ = ("_late", "_task")

    def __init__(self) -> None:
        super().__init__(_TIMERS.get())
        self.since = NEVER
        self._late = False
        self._task = asyncio.current_task()

    def begin(self) -> None:
        """Start the timer of the body."""
        # The timer fires WATCH_AFTER seconds after `since`, so set `since` to a time in the future.
        self.since = self.now() + BODY_SECONDS - WATCH_AFTER

    def received(self, size: int) -> None:
        """Record that this many bytes have arrived."""
        since = self.since + size / BODY_BYTES_PER_SECOND
        self.begin()
        self.since = min(since, self.since)

    def timed_out(self) -> None:
        if self._task is not None:
            self._late = True
            self._task.cancel()

    def ended_by(self, error: BaseException) -> bool:
        """True if this error is only the cancellation by :meth:`timed_out`."""
        if not self._late or self._task is None:
            return False
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)


async def read_body(
    receive: Receive,
    limit: int,
    cut_short: Callable[[], Exception],
    claim: BodyClaim | None = None,
    wait: BodyWait | None = None,
) -> bytes:
    """Read the request's body. If it comes in one piece, it is not copied.

    Args:
        limit: the maximum number of bytes.
        cut_short: returns the error to raise if the client leaves before the end of the body.
        claim: the claim of this body on memory, see :mod:`.body_memory`.
        wait: the timer of the whole request, if it has one.

    Raises:
        WattfareError: ``invalid_request``, 413, if the body is larger than ``limit``.
            ``invalid_request``, 408, if it takes too long to arrive. ``upstream``, 503, if there is
            not enough memory for it.
    """
    own = None
    if wait is None:
        wait = own = BodyWait()
    first, rest = b"", bytearray()  # a list would take far more memory than tiny parts
    size = 0
    more = True
    wait.begin()
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise cut_short()
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large(limit)
            if claim is not None:
                claim.grow(size)
            if size == len(part):
                first = part
            else:
                rest += part
            more = message.get("more_body", False)
            if more:
                wait.received(len(part))
    except BaseException as error:
        first = b""  # the error's traceback keeps this frame alive
        rest.clear()
        if wait.ended_by(error):
            raise invalid_request("The body took too long to arrive.", 408) from None
        raise
    finally:
        wait.since = NEVER
        if own is not None:
            own.end()
    return b"".join((first, rest)) if rest else first


class ClientGoneError(Exception):
    """The client has left. The server reported this when we sent something."""


class UntilDisconnect(BodyWait):
    """A block that is cancelled when the client leaves. As with :func:`asyncio.timeout`, the
    cancellation does not leave the block. Until :meth:`watch` is called, it can time the body.

    Args:
        receive: the ``receive`` of the request. The body must be read before :meth:`watch` is
            called.
        goes_on: called when the client leaves. If it returns True, the block is not cancelled.
    """

    __slots__ = ("_ahead", "_context", "_goes_on", "_gone", "_receive", "_unread", "_watcher")

    def __init__(self, receive: Receive, goes_on: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._receive = receive
        self._goes_on = goes_on
        self._context: Context | None = None  # None while the client is not watched
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False
        self._unread = False
        #: What was received before the body was read. None is the end of it.
        self._ahead: asyncio.Queue[Message | Exception | None] | None = None

    async def during(self, call: Awaitable[T]) -> T:
        """Await a call that comes before the body is read, and watch the client meanwhile."""
        self._context = copy_context()
        self._unread = True
        self.since = self.now()
        try:
            return await call
        finally:
            self.since = NEVER
            self._context = None
            self._unread = False
            if self._watcher is not None:
                self._timer.add(self)  # it has timed out, and may have to wait again

    async def receive(self) -> Message:
        """Receive a message of the body."""
        if self._ahead is not None:
            message = await self._ahead.get()
            if isinstance(message, Exception):
                raise message
            if message is not None:
                return message
            self._ahead = None
        return await self._receive()

    def watch(self) -> None:
        """Start to check after :data:`WATCH_AFTER` seconds whether the client has left."""
        if self._context is None:
            # A wrapper around `receive` may use the context of its request.
            self._context = copy_context()
            self.since = self.now()

    def timed_out(self) -> None:
        """Start the task that waits for the client to leave. If the body is late, cancel."""
        if self._context is None:
            super().timed_out()
            return
        if self._watcher is not None and not self._watcher.done():
            return
        loop = asyncio.get_running_loop()
        watching = self._watch_client
        if self._unread:
            if self._ahead is not None:
                return  # the rest of a large body stays unread until its sender is known
            self._ahead = asyncio.Queue()
            watching = partial(self._watch_ahead, self._ahead)
        self._watcher = loop.create_task(watching(), context=self._context)

    async def _watch_ahead(self, ahead: asyncio.Queue[Message | Exception | None]) -> None:
        size = 0
        try:
            while size <= LARGE_BODY:
                message = await self._receive()
                ahead.put_nowait(message)
                if message["type"] == "http.disconnect":
                    self._leave()
                    return
                size += len(message.get("body", b"")) + _MESSAGE_BYTES
        except Exception as error:
            ahead.put_nowait(error)
        ahead.put_nowait(None)

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if self._task is not None and not self._goes_on():
            self._gone = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        self.end()
        if self._watcher is not None:
            self._watcher.cancel()
            # Break the reference cycle: otherwise, only the garbage collector could free it.
            self._watcher = None
        if isinstance(error, ClientGoneError):
            return True
        if not self._gone or task is None:
            return False
        if kind is None:
            # The block ended just before the cancellation arrived, so the cancellation is still
            # pending.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                kind = asyncio.CancelledError
        # Suppress only our own cancellation. If the server has also cancelled the task, its
        # cancellation continues.
        return task.uncancel() == 0 and kind is asyncio.CancelledError


_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), WATCH_AFTER))
