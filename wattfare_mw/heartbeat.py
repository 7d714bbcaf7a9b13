"""Comments in a silent event stream: they show the client and each proxy that it is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context

from .transport.idle import NEVER, IdleTimer, IdleWait

#: Every client of an event stream leaves out comments.
COMMENT = b": wattfare\n\n"


class Heartbeat(IdleWait):
    """Sends a comment whenever nothing else was sent for as long as its timer says.

    Whoever sends the stream sets :attr:`since` to NEVER and awaits :meth:`sent` before each
    event, and sets :attr:`since` to the time after it. So no two senders are at work at once.

    Args:
        send: sends one comment.

    Attributes:
        sending: the comment that is being sent; None most of the time.
    """

    __slots__ = ("_context", "_send", "sending")

    def __init__(self, timer: IdleTimer, send: Callable[[], Awaitable[None]]) -> None:
        super().__init__(timer)
        self._send = send
        self._context = copy_context()
        self.sending: asyncio.Task[None] | None = None

    def timed_out(self) -> None:
        """Send a comment, in a task of its own."""
        loop = asyncio.get_running_loop()
        self.sending = loop.create_task(self._beat(), context=self._context)

    async def _beat(self) -> None:
        await self._send()
        self.sending = None
        self.since = self.now()
        self._timer.add(self)

    async def sent(self) -> None:
        """Wait until no comment is being sent, and hold the next one back.

        Raises:
            Exception: what the sending of the comment raised.
        """
        if self.sending is not None:
            await self.sending
        self.since = NEVER

    async def stop(self) -> None:
        """Send no more comments; wait for the one that is being sent."""
        await self.sent()
        self.end()

    def close(self) -> None:
        """Send no more comments, and give up the one that is being sent."""
        self.end()
        task, self.sending = self.sending, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # an exception that nobody takes would be logged
