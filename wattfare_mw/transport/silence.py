"""How long a service may be silent: one timer for all that wait for it on one event loop. A timer
for each answer, set anew at each piece, takes longer than passing the piece on."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context

#: No moment at all: nobody waits.
NEVER = math.inf
#: What a loop's clock may not tell apart, in seconds (uvloop's counts milliseconds): a timer for
#: less would be set again and again until it ticks.
TICK = 0.001


class Silence:
    """One that waits, from when it is made until its end.

    Attributes:
        since: when it last began to wait, by :attr:`now`; :data:`NEVER` while there is something
            to take, and whoever takes it may take its time.
        now: the time on its loop's clock.
    """

    __slots__ = ("_watch", "now", "since")

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.now = watch.now
        self.since = watch.now()
        watch.add(self)

    def end(self) -> None:
        """There is nothing to wait for any more."""
        self._watch.discard(self)

    def broken(self) -> None:
        """Called once where nothing was heard for too long."""
        raise NotImplementedError


class Watch:
    """Looks after all who wait on one event loop for no longer than so many seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self._loop = loop
        self.now = loop.time
        self._limit = limit
        self._waiting: set[Silence] = set()
        self.discard = self._waiting.discard
        self._timer: asyncio.TimerHandle | None = None
        # Not that of whoever happens to come first: the timer is everybody's.
        self._context = Context()

    def add(self, silence: Silence) -> None:
        """From now on look after this one, too."""
        self._waiting.add(silence)
        if self._timer is None:
            self._set(self._limit)

    def _set(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look, context=self._context)

    def _look(self) -> None:
        # The timer is not taken back where nobody waits: the next ones find it running.
        self._timer = None
        now = self.now()
        soonest = self._limit
        for silence in list(self._waiting):
            left = silence.since + self._limit - now
            if left > TICK:
                soonest = min(soonest, left)
            else:
                self._waiting.discard(silence)
                silence.broken()
        if self._waiting:
            self._set(soonest)
