"""Idle timeouts: how long to wait for the other side.

One timer serves all waits on an event loop. A timer for each response, reset at each chunk, would
take longer than passing the chunk on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextvars import Context

#: A time that never comes. It means that there is no wait now.
NEVER = math.inf
#: The resolution of a loop's clock, in seconds (uvloop counts milliseconds). A shorter timer would
#: be set again and again until the clock ticks.
TICK = 0.001


class IdleWait:
    """One wait, from when it is made until its end.

    Attributes:
        since: when the current wait began, by :attr:`now`; :data:`NEVER` while data is available,
            because the reader may take any time.
        now: the time on the clock of its timer.
    """

    __slots__ = ("_timer", "now", "since")

    def __init__(self, timer: IdleTimer) -> None:
        self._timer = timer
        self.now = timer.now
        self.since = timer.now()
        timer.add(self)

    def end(self) -> None:
        """End the wait."""
        self._timer.discard(self)

    def timed_out(self) -> None:
        """Called once, if the wait took too long."""
        raise NotImplementedError


class IdleTimer:
    """Watches all waits on one event loop that have the same limit.

    Args:
        limit: in seconds.
        now: the clock of the waits. A stream reads it at each chunk, and asyncio's own `loop.time`
            is a Python function around the same clock.
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
        # All waits share the timer, so it must not run in the context of the first one.
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
