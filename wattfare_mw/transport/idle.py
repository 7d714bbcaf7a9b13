"""Idle timeouts: limits on the wait for data from a connection.

One timer serves all waits on an event loop. Resetting a separate timer for each chunk would take
longer than passing the chunk on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextvars import Context

#: The value of :attr:`IdleWait.since` while there is no wait.
NEVER = math.inf
#: The resolution of an event loop's clock, in seconds. uvloop counts milliseconds. A shorter timer
#: would be set again and again until the clock ticks.
TICK = 0.001


class IdleWait:
    """Something that can wait for data, such as a response. It is watched from its creation to its
    end.

    Attributes:
        since: when the current wait began, by :attr:`now`. :data:`NEVER` while data is available,
            because the reader of the data may take any time.
        now: the clock of its timer.
    """

    __slots__ = ("_timer", "now", "since")

    def __init__(self, timer: IdleTimer) -> None:
        self._timer = timer
        self.now = timer.now
        self.since = timer.now()
        timer.add(self)

    def end(self) -> None:
        """Stop watching."""
        self._timer.discard(self)

    def timed_out(self) -> None:
        """Called once, if a wait takes too long."""
        raise NotImplementedError


class IdleTimer:
    """Watches all waits on one event loop that have the same limit.

    Args:
        limit: the limit, in seconds.
        now: the clock. A stream reads the clock at each chunk, so the default is faster than
            asyncio's own `loop.time`, a Python function around the same clock.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self.now = now
        self._limit = limit
        self._waits: set[IdleWait] = set()
        self.discard = self._waits.discard
        self._handle: asyncio.TimerHandle | None = None
        # All waits share the timer, so it must not run in the context of the first wait.
        self._context = Context()

    def add(self, wait: IdleWait) -> None:
        """Watch this wait, too."""
        self._waits.add(wait)
        if self._handle is None:
            self._set(self._limit)

    def _set(self, seconds: float) -> None:
        self._handle = self._loop.call_later(seconds, self._check, context=self._context)

    def _check(self) -> None:
        # The timer keeps running after the last wait, so that the next wait need not set it.
        self._handle = None
        now = self.now()
        soonest = self._limit
        for wait in list(self._waits):
            left = wait.since + self._limit - now
            if left > TICK:
                soonest = min(soonest, left)
            else:
                self._waits.discard(wait)
                wait.timed_out()
        if self._waits:
            self._set(soonest)
