"""Queues of calls that wait until other calls of their account end and release budget.

When a call ends in this process, the first call in the queue of its account is woken. A queue is
not woken when a call ends in another process or when the cap is raised. So the first call also
tries again every :data:`RETRY_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ..records import Account

#: How often the first call of a queue tries again, in seconds.
RETRY_SECONDS = 0.5


class Place:
    """A call's place in a queue."""

    def __init__(self, queue: list[Place]) -> None:
        self._queue = queue
        self._woken = asyncio.Event()

    @property
    def is_first(self) -> bool:
        """True if it is this call's turn."""
        return self._queue[0] is self

    def wake(self) -> None:
        """Wake this call. Budget may be available, or the call may now be first in the queue."""
        self._woken.set()

    def clear(self) -> None:
        """Clear earlier wake-ups, before a new attempt."""
        self._woken.clear()

    async def wait(self, seconds: float) -> None:
        """Wait until this call is woken, for at most this many seconds."""
        if self.is_first:
            seconds = min(seconds, RETRY_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


class BudgetQueues:
    """The queues of this process, one for each account with waiting calls."""

    def __init__(self) -> None:
        self._queues: dict[Account, list[Place]] = {}

    @contextmanager
    def place(self, account: Account) -> Generator[Place]:
        """A place at the end of the account's queue, during a ``with`` block."""
        queue = self._queues.setdefault(account, [])
        place = Place(queue)
        queue.append(place)
        try:
            yield place
        finally:
            queue.remove(place)
            if queue:
                queue[0].wake()
            else:
                del self._queues[account]

    def __len__(self) -> int:
        """The number of waiting calls."""
        return sum(map(len, self._queues.values()))

    def freed(self, account: Account) -> None:
        """Wake the queue of this account, because one of its calls has ended."""
        queue = self._queues.get(account)
        if queue:
            queue[0].wake()
