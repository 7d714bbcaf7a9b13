"""What a server receives: a body with a bound; and, under ASGI, word that its client has gone."""

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

#: How long a client may wait before we look whether it still does, in seconds: an answer that comes
#: soon needs no look, which takes a task of its own.
WATCH_AFTER = 0.1
#: How long a body may take to arrive, in seconds: so long, and a second more for each so many
#: bytes that have arrived. Time is not saved up: a client that sends nothing has no more than the
#: first of these, even if it has sent much before.
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 10_000


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def check_length(content_length: str | None, limit: int) -> bool:
    """Refuse a body by the length that is announced for it. True if that is a small one, of up to
    :data:`.offload.LARGE_BODY`; False if it is large or not known.

    Raises:
        WattfareError: ``invalid_request``, 413; it is larger than this.
    """
    if content_length is None or not content_length.isdecimal():
        return False
    length = int(content_length[:20])
    if length > limit:
        raise too_large(limit)
    return length <= LARGE_BODY


def too_large(limit: int) -> WattfareError:
    """The error for a body of more bytes than this."""
    return invalid_request(f"The body is larger than {limit:,} bytes.", 413)


async def read_body(
    receive: Receive, limit: int, cut_short: Callable[[], Exception], claim: BodyClaim | None = None
) -> bytes:
    """The request's body. If it came in one piece, it is not copied.

    Args:
        limit: the most bytes.
        cut_short: makes the error to raise if the client leaves before the end of the body.
        claim: on the memory that the body takes.

    Raises:
        WattfareError: ``invalid_request``, 413: the body is larger than ``limit``; 408: it takes
            too long to arrive; ``upstream``, 503: there is no room for it.
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
        parts.clear()  # the error's traceback holds this frame, perhaps for long
        if wait.ended_by(error):
            raise invalid_request("The body took too long to arrive.", 408) from None
        raise
    finally:
        wait.end()
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _BodyWait(IdleWait):
    """Waits for a body. If it takes too long, its task is cancelled."""

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
        """Is this error the cancellation by :meth:`timed_out`, and by nothing else?"""
        if not self._late or self._task is None:
            return False
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)


class ClientGoneError(Exception):
    """The client went away, and the server says so where we send."""


class UntilDisconnect(IdleWait):
    """A block that is left when the client goes away: what runs in it is cancelled, as
    :func:`asyncio.timeout` does it, and its cancellation ends here.

    Args:
        receive: of the request, whose body has been read when :meth:`watch` is called.
        goes_on: asked when the client goes away. If it says True, nothing is cancelled.
    """

    __slots__ = ("_context", "_goes_on", "_gone", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive, goes_on: Callable[[], bool] = lambda: False) -> None:
        self._receive = receive
        self._goes_on = goes_on
        self._context: Context | None = None  # before it is watched
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._gone = False

    def watch(self) -> None:
        """Begin to watch, soon."""
        if self._context is None:
            # Whoever wraps `receive` may look at its request's.
            self._context = copy_context()
            super().__init__(_IDLE_TIMERS.get())

    def timed_out(self) -> None:
        """The answer does not come soon: look after the client from now on."""
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
            # It leads back here: only the garbage collector would ever free the two.
            self._watcher = None
        if isinstance(error, ClientGoneError):
            return True
        if not self._gone or task is None:
            return False
        if kind is None:
            # It was done in the same moment; the cancellation still waits for the next await.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                kind = asyncio.CancelledError
        # Ours is one cancellation; if the server has asked for another, that one goes on.
        return task.uncancel() == 0 and kind is asyncio.CancelledError


_IDLE_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), WATCH_AFTER))
_BODY_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), BODY_SECONDS))
