"""How long a service may be silent: one timer for all that wait for it on one event loop. A timer
for each answer, set anew at each piece, takes longer than passing the piece on."""

from __future__ import annotations

import asyncio
import math


class Silence:
    """One that waits, since when."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since = math.inf

    def pause(self) -> None:
        """There is something; whoever takes it may take its time."""
        self.since = math.inf

    def broken(self) -> None:
        """Called once where nothing was heard for too long."""
        raise NotImplementedError


class Watch:
    """Looks after all who wait on one event loop for no longer than so many seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self._loop = loop
        self._limit = limit
        self._waiting: set[Silence] = set()
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, silence: Silence) -> None:
        """From now on it waits for something."""
        silence.since = self._loop.time()
        self._waiting.add(silence)
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit, self._look)

    def end(self, silence: Silence) -> None:
        """There is nothing to wait for any more."""
        self._waiting.discard(silence)

    def _look(self) -> None:
        # The timer is not taken back where nobody waits: the next ones find it running.
        self._timer = None
        now = self._loop.time()
        soonest = self._limit
        for silence in list(self._waiting):
            left = silence.since + self._limit - now
            if left > 0:
                soonest = min(soonest, left)
            else:
                self._waiting.discard(silence)
                silence.broken()
        if self._waiting:
            self._timer = self._loop.call_later(soonest, self._look)
