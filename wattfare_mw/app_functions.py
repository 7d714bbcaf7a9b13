"""Private: calls the app's own functions, sync or async, from sync or async code."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar, cast

from asgiref.sync import async_to_sync

from .threads import APP_THREADS

T = TypeVar("T")


class AppFunction:
    """One of the app's functions. Whether it is async is determined once, not for each call."""

    __slots__ = ("_function", "is_async")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.is_async = _is_async(function)

    def call(self, *args: Any) -> Any:
        """Call it from sync code. An async function runs on an event loop."""
        function = self._function
        result = function(*args)
        if result is None or isinstance(result, str) or not inspect.isawaitable(result):
            return result
        if (threads := _gevent_threads()) is not None:
            # All greenlets share one thread, and a thread runs one event loop at a time.
            return threads.spawn(copy_context().run, _Outcome, result).get().get()
        if not _on_event_loop():
            return async_to_sync(_awaited)(result)
        # This is an async view of a sync framework. Its event loop is blocked until we return.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(copy_context().run, asyncio.run, _awaited(result)).result()

    def call_as_it_is(self, *args: Any) -> Any:
        """Call it in this thread. If it is async, the caller must await the result."""
        return self._function(*args)

    def call_async(self, *args: Any) -> Awaitable[Any]:
        """Call it from an event loop. A sync function runs in a thread, where it may block."""
        function = self._function
        return function(*args) if self.is_async else _call_in_thread(function, args)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _gevent_threads() -> Any:
    """A pool of real threads, if gevent has replaced threads by greenlets in this process.
    Otherwise None.

    While a greenlet waits for one of these threads, other greenlets run.
    """
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return None
    hub = importlib.import_module("gevent").get_hub()
    pool = getattr(hub, _GEVENT_POOL, None)
    if pool is None:
        # Not the hub's own pool: gevent resolves host names there.
        pool = importlib.import_module("gevent.threadpool").ThreadPool(GEVENT_THREADS, hub)
        setattr(hub, _GEVENT_POOL, pool)  # the hub owns the pool
    return pool


_GEVENT_POOL = "wattfare_threads"
#: The maximum number of the app's async functions that run at once under gevent.
GEVENT_THREADS = 40


class _Outcome:
    """What an async function did in one of gevent's threads. gevent copies an exception between its
    threads. It hangs if the traceback is very long, such as that of a RecursionError. It also
    prints the traceback."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._result: Any = None
        self._failure: BaseException | None = None
        try:
            self._result = asyncio.run(_awaited(awaitable))
        except BaseException as error:
            self._failure = error

    def get(self) -> Any:
        """Return the result, or raise the exception."""
        failure, self._failure = self._failure, None
        if failure is None:
            return self._result
        try:
            raise failure
        finally:
            del failure  # break the cycle: its traceback has this frame


async def _call_in_thread(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = await APP_THREADS.run(function, *args)
    return await result if inspect.isawaitable(result) else result


async def _awaited(value: Any) -> Any:
    return await value


def adapt_function(function: T, convert: Callable[[Any], Any]) -> T:
    """Wrap a function that takes the framework's own request, so that it takes a
    :class:`wattfare_mw.Request`.

    Args:
        function: the app's function. A value that is not callable is returned unchanged.
        convert: returns the framework's request for a :class:`wattfare_mw.Request`.
    """
    if not callable(function):
        return function
    app_function = cast("Callable[[Any], Any]", function)

    async def call_async_with(request: Any) -> Any:
        return await app_function(convert(request))

    def call_with(request: Any) -> Any:
        return app_function(convert(request))

    return cast("T", call_async_with if _is_async(app_function) else call_with)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # an object with an async __call__
    )
