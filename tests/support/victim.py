"""A user whose stream runs while another client attacks, and the memory of a process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from support.upstream import Exchange

PATIENCE = 60
#: How long the upstream waits between two words for the victim, in seconds.
PAUSE = 0.02
#: What the victim asks. It tells the upstream which call is the victim's.
QUESTION = "the victim's question"


class Victim:
    """A stream that runs until the attack is over.

    Attributes:
        longest_gap: between two pieces of the stream, in seconds.
        text: all that has come.
    """

    def __init__(self, open_stream: Callable[[], httpx.Response]) -> None:
        self._open = open_stream
        self._flowing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.over = threading.Event()
        self.longest_gap = 0.0
        self.text = b""

    def words(self, exchange: Exchange) -> None:
        """What the upstream answers to the victim: words, until the attack is over."""
        exchange.start_stream()
        while not self.over.wait(PAUSE):
            exchange.word("w ")
        exchange.usage({"prompt_tokens": 5, "completion_tokens": 5})
        exchange.done()

    def forget(self) -> None:
        """Measure the longest gap anew."""
        self.longest_gap = 0.0

    def __enter__(self) -> Victim:
        self._thread.start()
        assert self._flowing.wait(PATIENCE)
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._read()
        except httpx.HTTPError as error:
            self.text += repr(error).encode()
        finally:
            self._flowing.set()

    def _read(self) -> None:
        response = self._open()
        last = time.monotonic()
        with contextlib.closing(response):
            for piece in response.iter_raw():
                now = time.monotonic()
                if self._flowing.is_set():
                    self.longest_gap = max(self.longest_gap, now - last)
                last = now
                self.text = (self.text + piece)[-10_000:]
                if b"data" in piece:
                    self._flowing.set()


class Memory:
    """The memory of a process (Linux)."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.mark()

    def mark(self) -> None:
        """Count from now on."""
        (self._folder / "clear_refs").write_text("5")  # the peak begins anew
        self._before = self._status("VmRSS")

    def grown(self) -> int:
        """The most bytes that the process has held since then, above what it held then."""
        return self._status("VmHWM") - self._before

    def _status(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("this system does not say")
