"""Private: reads request bodies within a limit. Under ASGI, it also detects that a client has
left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Self

from .body_memory import BodyClaim
from .errors import WattfareError, invalid_request
from .offload import LARGE_BODY
from .transport.base import LoopPool
from .transport.idle import IdleTimer, IdleWait

#: How long a call runs before the check whether its client has left begins, in seconds. The check
#: needs a task, and a fast answer does not need the check.
WATCH_AFTER = 0.1
#: How long a body may take to arrive, in seconds: a base time, plus one second for each
#: :data:`BODY_BYTES_PER_SECOND`. A body is also refused after a pause of the base time, even if it
#: came fast before.
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 10_000


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


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


async def read_body(
    receive: Receive, limit: int, cut_short: Callable[[], Exception], claim: BodyClaim | None = None
) -> bytes:
    """Read the request's body. If it comes in one piece, it is not copied.

    Args:
        limit: the maximum number of bytes.
        cut_short: returns the error to raise if the client leaves before the end of the body.
        claim: the claim of this body on memory, see :mod:`.body_memory`.

    Raises:
        WattfareError: ``invalid_request``, 413, if the body is larger than ``limit``.
            ``invalid_request``, 408, if it takes too long to arrive. ``upstream``, 503, if there is
            not enough memory for it.
    """
    parts: list[bytes] = []
    size = 0
    more = True
    wait = _BodyWait(_BODY_TIMERS.get())
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
            parts.append(part)
            more = message.get("more_body", False)
            if more:
                wait.since = min(wait.since + len(part) / BODY_BYTES_PER_SECOND, wait.now())
    except BaseException as error:
        parts.clear()  # the error's traceback keeps this frame alive
        if wait.ended_by(error):
            raise invalid_request("The body took too long to arrive.", 408) from None
        raise
    finally:
        wait.end()
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _BodyWait(IdleWait):
    """The wait for a body. If it takes too long, the reading task is cancelled."""

    __slots__ = ("_late", "_task")

    def __init__(self, timer: IdleTimer) -> None:
        super().__init__(timer)
        self._late = False
        self._task = asyncio.current_task()

    def timed_out(self) -> None:
        if self._task is not None:
            self._late = True
            self._task.cancel()

    def ended_by(self, error: BaseException) -> bool:
        """True if this error is only the cancellation by :meth:`timed_out`."""
        if not self._late or self._task is None:
            return False
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)


class ClientGoneError(Exception):
    """The client has left. The server reported this when we sent something."""


class UntilDisconnect(IdleWait):
    """A block that is cancelled when the client leaves. As with :func:`asyncio.timeout`, the
    cancellation does not leave the block.

    Args:
        receive: the ``receive`` of the request. The body must be read before :meth:`watch` is
            called.
        goes_on: called when the client leaves. If it returns True, the block is not cancelled.
    """

    __slots__ = ("_context", "_goes_on", "_gone", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive, goes_on: Callable[[], bool] = lambda: False) -> None:
        self._receive = receive
        self._goes_on = goes_on
        self._context: Context | None = None  # None until `watch` is called
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._gone = False

    def watch(self) -> None:
        """Start to check after :data:`WATCH_AFTER` seconds whether the client has left."""
        if self._context is None:
            # A wrapper around `receive` may use the context of its request.
            self._context = copy_context()
            super().__init__(_IDLE_TIMERS.get())

    def timed_out(self) -> None:
        """Start the task that waits for the client to leave."""
        loop = asyncio.get_running_loop()
        self._watcher = loop.create_task(self._watch_client(), context=self._context)

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None and not self._goes_on():
            self._gone = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        if self._context is not None:
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


_IDLE_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), WATCH_AFTER))
_BODY_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), BODY_SECONDS))
