"""Private: a flow is a rule that needs I/O, written as a generator. It yields commands, receives
their results, and returns its decision. It does no I/O itself, so the same flow serves sync and
async code. The two functions here are the only difference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Hashable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

Flow = Generator[Any, Any, T]


class InThread(msgspec.Struct, frozen=True, gc=False):
    """A command: call this function in a thread. It does no I/O, but may take long.

    Attributes:
        payer: whose turn it takes, see :mod:`.turns`; None for none.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    payer: Hashable = None


def run(flow: Flow[T], perform: Callable[[Any], Any]) -> T:
    """Run a flow. ``perform`` carries out its commands; an exception is raised inside the flow."""
    try:
        command = next(flow)
        while True:
            try:
                result = [perform(command)]
            except BaseException as error:
                command = flow.throw(error)
            else:
                # Passed on and not kept: the local variables of a traceback then show only what the
                # flow itself has, and no value that it has dropped or cleaned of a secret.
                command = flow.send(result.pop())
    except StopIteration as stop:
        return stop.value


async def run_async(flow: Flow[T], perform: Callable[[Any], Awaitable[Any]]) -> T:
    """:func:`run`, with an async ``perform``."""
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
