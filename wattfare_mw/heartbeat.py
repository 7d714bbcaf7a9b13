"""Private: sends comments while an event stream has no events, so that clients and proxies keep it
open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context

from .transport.idle import NEVER, IdleTimer, IdleWait

#: A comment in an event stream. Clients ignore it.
COMMENT = b": wattfare\n\n"


class Heartbeat(IdleWait):
    """Sends a comment after each period in which nothing else was sent.

    Before each event, the sender of the stream sets :attr:`since` to NEVER and awaits :meth:`sent`.
    After the event, it sets :attr:`since` to the current time. So an event and a comment are never
    sent at the same time.

    Args:
        send: sends one comment.

    Attributes:
        sending: the task that is sending a comment, or None.
    """

    __slots__ = ("_context", "_send", "sending")

    def __init__(self, timer: IdleTimer, send: Callable[[], Awaitable[None]]) -> None:
        super().__init__(timer)
        self._send = send
        self._context = copy_context()
        self.sending: asyncio.Task[None] | None = None

    def timed_out(self) -> None:
        """Send a comment, in a separate task."""
        loop = asyncio.get_running_loop()
        self.sending = loop.create_task(self._beat(), context=self._context)

    async def _beat(self) -> None:
        await self._send()
        self.sending = None
        self.since = self.now()
        self._timer.add(self)

    async def sent(self) -> None:
        """Wait until no comment is being sent.

        Raises:
            Exception: sending the comment failed.
        """
        if self.sending is not None:
            await self.sending
        self.since = NEVER

    async def stop(self) -> None:
        """Send no more comments, and wait for the one that is being sent."""
        await self.sent()
        self.end()

    def close(self) -> None:
        """Send no more comments, and cancel the one that is being sent."""
        self.end()
        task, self.sending = self.sending, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # asyncio logs an exception that is never retrieved
