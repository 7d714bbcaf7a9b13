"""Private: flows. A flow is a procedure that needs I/O, written as a generator. It yields commands,
receives their results, and returns its decision. A flow does no I/O itself, so sync and async code
share it. :func:`run` or :func:`run_async` carries out its commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Hashable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

Flow = Generator[Any, Any, T]


class InThread(msgspec.Struct, frozen=True, gc=False):
    """A command: call this function in a thread. The function does no I/O, but may take long.

    Attributes:
        payer: the user or the grant that pays. The call waits for its turn, see :mod:`.turns`. If
            None, the call does not wait.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    payer: Hashable = None


def run(flow: Flow[T], perform: Callable[[Any], Any]) -> T:
    """Run a flow. ``perform`` carries out its commands. If ``perform`` raises an exception, the
    exception is raised inside the flow."""
    try:
        command = next(flow)
        while True:
            try:
                result = [perform(command)]
            except BaseException as error:
                command = flow.throw(error)
            else:
                # Do not keep the result in a variable: it may contain a secret, and a traceback can
                # show the local variables of this function.
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
