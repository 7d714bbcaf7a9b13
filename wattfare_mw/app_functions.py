"""The app's own functions, which may be synchronous or asynchronous on either side."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, cast

from asgiref.sync import async_to_sync

from .threads import APP_THREADS


class AppFunction:
    """One of the app's functions. Which kind it is, is looked up once and not at each call."""

    __slots__ = ("_function", "_is_async")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._is_async = _is_async(function)

    def call(self, *args: Any) -> Any:
        """Call it from synchronous code; one that is asynchronous runs on an event loop."""
        function = self._function
        result = function(*args)
        if result is None or isinstance(result, str) or not inspect.isawaitable(result):
            return result
        if not _on_event_loop():
            return async_to_sync(_awaited)(result)
        # In an asynchronous view of a synchronous framework: its loop is taken, and waits for us.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(copy_context().run, asyncio.run, _awaited(result)).result()

    def call_async(self, *args: Any) -> Awaitable[Any]:
        """Call it from an event loop; one that is synchronous runs in a thread, where it may
        block."""
        function = self._function
        return function(*args) if self._is_async else _call_in_thread(function, args)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _call_in_thread(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = await APP_THREADS.run(function, *args)
    return await result if inspect.isawaitable(result) else result


async def _awaited(value: Any) -> Any:
    return await value


def adapt(function: Any, convert: Callable[[Any], Any]) -> Any:
    """``function`` of the app's, given what ``convert`` makes of our request: a framework's own.
    What is no function is handed back as it is."""
    if not callable(function):
        return function
    function = cast("Callable[[Any], Any]", function)
    if _is_async(function):

        async def call_async_with(request: Any) -> Any:
            return await function(convert(request))

        return call_async_with

    def call_with(request: Any) -> Any:
        return function(convert(request))

    return call_with


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # an object with an async __call__
    )
