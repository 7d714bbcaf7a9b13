"""The watch for disconnecting clients, which all requests of an event loop share."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any

from wattfare_mw.receiving import UntilDisconnect
from wattfare_mw.transport.idle import IdleTimer, IdleWait

WHOSE: ContextVar[str] = ContextVar("whose")


class Client:
    """A client that stays connected and is watched."""

    def __init__(self) -> None:
        self.watched = asyncio.Event()
        self.whose = ""

    async def receive(self) -> dict[str, Any]:
        self.whose = WHOSE.get("nobody's")
        self.watched.set()
        return await asyncio.get_running_loop().create_future()


async def answer(client: Client, whose: str = "") -> None:
    WHOSE.set(whose)
    async with UntilDisconnect(client.receive) as block:
        block.watch()
        await client.watched.wait()


async def test_watch_leaves_no_reference_cycles() -> None:
    gc.disable()
    try:
        client = Client()
        await answer(client)
        left = weakref.ref(client)
        del client
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()


async def test_each_request_is_watched_in_its_own_context() -> None:
    """A wrapper of ``receive``, such as a tracer, finds its request in the context."""
    clients = {name: Client() for name in ("first", "second", "third")}
    await asyncio.gather(*(answer(client, name) for name, client in clients.items()))
    assert {name: client.whose for name, client in clients.items()} == {n: n for n in clients}
    # The timer is still set, and belongs to none of them.
    later = Client()
    await answer(later, "later")
    assert later.whose == "later"


class Loop:
    """The clock and timers of an event loop, controlled by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[float] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, _function: Any, *, context: Any) -> object:
        assert list(context) == []
        self.timers.append(seconds)
        return object()


class Waiting(IdleWait):
    """A receive that records its cancellation."""

    def __init__(self, watch: IdleTimer) -> None:
        super().__init__(watch)
        self.given_up = 0

    def timed_out(self) -> None:
        self.given_up += 1


def test_timer_that_fires_slightly_early_is_not_set_again() -> None:
    """A loop's clock may count milliseconds, and float sums are not exact."""
    loop: Any = Loop()
    watch = IdleTimer(loop, 0.1, loop.time)
    first = Waiting(watch)
    loop.now = 0.06
    second = Waiting(watch)
    loop.now = 0.1 - 1e-11
    watch._check()
    assert (first.given_up, second.given_up) == (1, 0)
    assert len(loop.timers) == 2
    assert 0.05 < loop.timers[1] < 0.07
    second.end()
    loop.now = 0.17
    watch._check()
    assert (first.given_up, second.given_up) == (1, 0)
    assert len(loop.timers) == 2
