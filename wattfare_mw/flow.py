"""A flow is a rule that needs the outside world: a generator that yields what it needs, is sent
what came of it, and returns what it decided. It does no I/O, so that one flow serves the
synchronous and the asynchronous side; the two functions here are all that differs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

Flow = Generator[Any, Any, T]


class InThread(msgspec.Struct, frozen=True, gc=False):
    """A command: call this function, away from an event loop. It does no I/O, but may take long."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


def run(flow: Flow[T], perform: Callable[[Any], Any]) -> T:
    """Carry a flow out: ``perform`` does what it asks for; what that raises, the flow sees."""
    try:
        command = next(flow)
        while True:
            try:
                result = [perform(command)]
            except BaseException as error:
                command = flow.throw(error)
            else:
                # Handed over and not kept: a traceback's local variables show what the flow
                # itself holds, and nothing that it has dropped or cleaned of a secret.
                command = flow.send(result.pop())
    except StopIteration as stop:
        return stop.value


async def run_async(flow: Flow[T], perform: Callable[[Any], Awaitable[Any]]) -> T:
    """:func:`run`, with an asynchronous ``perform``."""
    try:
        command = next(flow)
        while True:
            try:
                result = [await perform(command)]
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(result.pop())
    except StopIteration as stop:
        return stop.value
