"""Another user's stream while one attacks: nothing of it may be cut, or wait for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.service import PATIENCE, App, chat_body

#: The longest time without a word that a bystander may see, in seconds. `wattfare/echo-slow` has
#: one every 50 ms.
LONGEST_GAP = 1.0


@dataclass
class Bystander:
    """A stream that is read all along.

    Attributes:
        begun: set with the first word.
        longest_gap: the longest time between two pieces of the stream so far, in seconds.
        failure: what went wrong, or None.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    longest_gap: float = 0.0
    failure: str | None = None

    def read(self, app: App, user: str) -> None:
        """Stream until told to stop, in as many calls as it takes."""
        body = chat_body("word " * 400, model="wattfare/echo-slow", stream=True, max_tokens=400)
        headers = app.paid_by(user)
        try:
            while not self.stopped.is_set():
                self._read_one(app, body, headers)
        except Exception as error:
            self.failure = self.failure or repr(error)
        finally:
            self.begun.set()

    def _read_one(self, app: App, body: object, headers: dict[str, str]) -> None:
        with app.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
            if answer.status_code != 200:
                self.failure = f"{answer.status_code} {answer.read()!r}"
                self.stopped.set()
                return
            latest = time.monotonic()
            for piece in answer.iter_raw():
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - latest)
                latest = now
                self.begun.set()
                if b'"error"' in piece:
                    self.failure = repr(piece)
                    self.stopped.set()
                if self.stopped.is_set():
                    return


@contextmanager
def bystander(app: App, user: str = "bystander") -> Iterator[Bystander]:
    """A connected user's stream beside the block; afterwards, that nothing has happened to it."""
    app.connect(user)
    seen = Bystander()
    thread = threading.Thread(target=seen.read, args=(app, user))
    thread.start()
    try:
        assert seen.begun.wait(PATIENCE)
        yield seen
    finally:
        seen.stopped.set()
        thread.join(PATIENCE)
    assert seen.failure is None
    assert seen.longest_gap < LONGEST_GAP
