"""A user whose stream runs beside an attack: it must not be cut or delayed. Also the memory of a
process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from support.http_client import http_client
from support.pace import Pace
from support.patience import PATIENCE
from support.service import App, chat_body
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.verify import verify

#: The longest time without a word that a victim may see, in seconds on an idle machine.
LONGEST_GAP = 1.0
#: The first word of a victim's prompt. The fakes recognize a victim's call by it: they answer with
#: a word every 50 ms until the client disconnects, as `wattfare/echo-slow` does.
QUESTION = "victim"

#: The limit of the stream, in tokens. It outlasts the slowest test.
ENOUGH = 1_000_000

MB = 10**6
#: The highest growth of a process's memory under attack, in bytes.
MOST_MEMORY = 200 * MB

Open = Callable[[], AbstractContextManager[httpx.Response]]


class Victim:
    """A stream that is read all the time, in as many calls as necessary.

    Args:
        open_stream: makes a call.

    Attributes:
        failure: what went wrong, or None.
    """

    def __init__(self, open_stream: Open) -> None:
        self._open = open_stream
        self._pace = Pace()
        self._begun = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._longest_gap = 0.0
        self._latest = 0.0
        self._slowness, self._late = 1.0, 0.0
        self.failure: str | None = None

    def forget(self) -> None:
        """Starts measuring the longest gap again."""
        self._longest_gap = 0.0
        self._latest = max(self._latest, time.monotonic())
        self._pace.since()
        self._slowness, self._late = 1.0, 0.0

    def longest_gap(self) -> float:
        """The longest time between two pieces of the stream, in seconds on an idle machine: the
        delay of the machine itself is subtracted."""
        under_way = time.monotonic() - self._latest if self.failure is None else 0.0
        slowness, late = self._pace.since()
        self._slowness, self._late = max(self._slowness, slowness), max(self._late, late)
        gap = max(self._longest_gap, under_way)
        return max(0.0, gap - self._late) / self._slowness

    def check(self) -> None:
        """Checks that the stream has not failed so far."""
        assert self.failure is None, self.failure
        assert self.longest_gap() < LONGEST_GAP

    def __enter__(self) -> Victim:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._pace)
            self._thread.start()
            assert self._begun.wait(PATIENCE)
            stack.pop_all()
        self.forget()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)
        self._pace.__exit__(*error)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._read_one()
        except Exception as error:
            self.failure = self.failure or repr(error)
        finally:
            self._begun.set()

    def _read_one(self) -> None:
        with self._open() as response:
            if response.status_code != 200:
                self._fail(f"{response.status_code} {response.read()!r}")
                return
            text = b""
            self._latest = time.monotonic()
            for piece in response.iter_raw():
                now = time.monotonic()
                self._longest_gap = max(self._longest_gap, now - self._latest)
                self._latest = now
                text = (text + piece)[-1000:]
                if b"data" in piece:
                    self._begun.set()
                if b'"error"' in piece:
                    self._fail(repr(piece))
                if self._over.is_set():
                    return
        if not text.endswith(b"data: [DONE]\n\n"):
            self._fail(f"cut after {text!r}")

    def _fail(self, failure: str) -> None:
        self.failure = failure
        self._over.set()


@contextmanager
def victim(app: App, model: str = "wattfare/echo-slow", user: str = "victim") -> Iterator[Victim]:
    """Runs a connected user's stream beside the block. Afterwards, checks that the stream was
    complete and the ledger is correct."""
    app.connect(user, monthlyUsd=100)
    body = chat_body(f"{QUESTION} " * 400, model=model, stream=True, max_tokens=ENOUGH)
    with victim_at(app.http.base_url.join("chat/completions"), app.paid_by(user), body) as seen:
        yield seen
    assert read_database(app.service.database, verify) == []


@contextmanager
def victim_at(url: Any, headers: dict[str, str], body: Any = None) -> Iterator[Victim]:
    """The same for the URL of a service or an app. There is no ledger to check."""
    body = body or chat_body(QUESTION, model="fake/model", stream=True, max_tokens=ENOUGH)
    with (
        http_client() as http,
        Victim(lambda: http.stream("POST", url, json=body, headers=headers)) as seen,
    ):
        yield seen
        seen.check()


class Memory:
    """The memory of a process (Linux)."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.mark()

    def mark(self) -> None:
        """Starts measuring."""
        (self._folder / "clear_refs").write_text("5")  # resets the peak
        self._before = self._status("VmRSS")

    def grown(self) -> int:
        """The most bytes that the process has held since then, minus the bytes at the start."""
        return self._status("VmHWM") - self._before

    def _status(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("this system does not report it")
