"""Runs the targets, counts the inputs, and limits the time of each."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from fuzz import targets
from fuzz.middleware import ASGI, WSGI

#: Seconds that an input may take.
PATIENCE = 10
#: The target that needs a service and schemathesis.
API = "api"
#: One input in this many is a request to the service. If the time is limited, it gets one third of
#: it.
API_SHARE = 100

#: The maker of each target. A target takes a random generator and makes one input from it.
TARGETS: dict[str, Callable[[], Callable[[Random], None]]] = {
    "event-streams": lambda: targets.event_streams,
    "json-limits": lambda: targets.json_limits,
    "requests": lambda: targets.requests,
    "price-lists": lambda: targets.price_lists,
    "answers": lambda: targets.answers,
    "chunks": lambda: targets.chunks,
    "credentials": lambda: targets.credentials,
    "wsgi": WSGI,
    "asgi": ASGI,
}


class FuzzFailedError(Exception):
    """An input raised a wrong error. The message says how to repeat it."""


class TooSlowError(BaseException):
    """An input took too long. (No target may catch this.)"""


@dataclass
class Tally:
    """The results of one target.

    Attributes:
        inputs: how many have been run.
        seconds: how long they took.
        slowest: how long the slowest took, in seconds, and its number.
    """

    name: str
    target: Callable[[Random], None]
    inputs: int = 0
    seconds: float = 0
    slowest: tuple[float, int] = (0, 0)

    def __str__(self) -> str:
        return _line(self.name, self.inputs, self.seconds, self.slowest)


def run(inputs: int, seconds: float | None, seed: int, only: str | None = None) -> None:
    """Runs this many inputs in total, or fewer if the time runs out.

    Raises:
        FuzzFailedError: one of them failed.
    """
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    total = 0
    if only in (None, API):
        wanted = inputs if only else inputs // API_SHARE
        total += _run_api(wanted, seconds and (seconds if only else seconds / 3), seed)
    names = [name for name in TARGETS if only in (None, name)]
    if names:
        until = None if seconds is None else began + seconds
        total += sum(one.inputs for one in fuzz(names, inputs - total, until, seed))
    took = time.monotonic() - began
    print(_line("all", total, took), flush=True)


def fuzz(names: list[str], inputs: int, until: float | None, seed: int) -> list[Tally]:
    """Runs the targets in turn, each for a while.

    Args:
        until: the monotonic time to stop at.
    """
    tallies = [Tally(name, TARGETS[name]()) for name in names]
    share = -(-inputs // len(tallies))
    with _time_limit():
        left = tallies
        while left and (until is None or time.monotonic() < until):
            for tally in left:
                _run_batch(tally, min(500, share - tally.inputs), until, seed)
            left = [tally for tally in left if tally.inputs < share]
    for tally in tallies:
        print(tally, flush=True)
    return tallies


def run_one(name: str, seed: int, number: int) -> None:
    """Runs one input and propagates its exception."""
    TARGETS[name]()(_random(name, seed, number))


def _run_batch(tally: Tally, inputs: int, until: float | None, seed: int) -> None:
    began = now = time.monotonic()
    for _ in range(inputs):
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            tally.target(_random(tally.name, seed, tally.inputs))
        except (Exception, TooSlowError):
            raise FuzzFailedError(
                f"{traceback.format_exc()}\n"
                f"To repeat it: --seed {seed} --target {tally.name} --only {tally.inputs}"
            ) from None
        before, now = now, time.monotonic()
        tally.slowest = max(tally.slowest, (now - before, tally.inputs))
        tally.inputs += 1
        if until is not None and now >= until:
            break
    tally.seconds += now - began


def _random(name: str, seed: int, number: int) -> Random:
    return Random(f"{seed} {name} {number}")


@contextmanager
def _time_limit() -> Iterator[None]:
    def too_slow(*_: Any) -> None:
        raise TooSlowError(f"An input took more than {PATIENCE} s.")

    before = signal.signal(signal.SIGALRM, too_slow)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_api(inputs: int, seconds: float | None, seed: int) -> int:
    from fuzz import api  # it needs schemathesis

    began = time.monotonic()
    try:
        done = api.fuzz(inputs, seconds, seed, PATIENCE)
    except Exception:
        raise FuzzFailedError(
            f"{traceback.format_exc()}\nTo repeat it: --seed {seed} --target {API}"
        ) from None
    print(_line(API, done, time.monotonic() - began), flush=True)
    return done


def _line(name: str, inputs: int, seconds: float, slowest: tuple[float, int] | None = None) -> str:
    line = f"{name:<14} {inputs:>9,} inputs {inputs / max(seconds, 1e-9):>8,.0f}/s"
    if slowest is None:
        return line
    took, number = slowest
    return f"{line}, slowest {took * 1000:,.0f} ms (--only {number})"
