"""Threads in which the app's synchronous functions run under ASGI, where they may block.

They are our own. On asyncio's default executor, which has a few threads only, slow functions would
hold up each other, and with them the look-ups of host names, which run there too. And an executor
takes longer than the rest of the way to a thread and back: what is handed over here is a tuple in a
queue.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, NamedTuple

from asgiref.sync import SyncToAsync

#: The most functions that run at once in a process, as in Starlette.
MOST_THREADS = 40


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    context: Context
    function: Callable[..., Any]
    args: tuple[Any, ...]


class Threads:
    """Runs functions for any event loop of this process. A thread starts when it is needed first,
    and waits for more until the process ends, which never waits for it."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        self._most = most
        self._begin()
        if hasattr(os, "register_at_fork"):
            # A child has none of its parent's threads.
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns, called in a thread with the caller's context variables. What
        it changes of them is changed for the caller, too.

        If the caller is cancelled, a function that has begun goes on, and one that has not is not
        called.

        Raises:
            BaseException: what the function raises; a RuntimeError for a StopIteration.
        """
        loop = asyncio.get_running_loop()
        context = copy_context()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._unfinished += 1
            starts = self._threads < self._most and self._threads < self._unfinished
            self._threads += starts
        self._jobs.put(_Job(loop, future, context, function, args))
        if starts:
            self._start(future)
        try:
            return await future
        finally:
            _take_over(context)

    def _start(self, future: asyncio.Future[Any]) -> None:
        try:
            threading.Thread(target=self._work, name="wattfare-app", daemon=True).start()
        except RuntimeError:  # the system has no more
            with self._lock:
                self._threads -= 1
                if self._threads:  # which will take this job, too
                    return
            future.cancel()
            raise

    def _work(self) -> None:
        jobs, lock = self._jobs, self._lock
        # Here asgiref looks for the loop on which an `async_to_sync` of the function runs.
        here: Any = SyncToAsync.threadlocal
        here.main_event_loop_pid = os.getpid()
        while True:
            job = jobs.get()
            here.main_event_loop = job.loop
            result, failure = _call(job)
            with lock:  # before its caller hears of it, who may have the next one
                self._unfinished -= 1
            # The loop is closed where nobody waits any more.
            with suppress(RuntimeError):
                job.loop.call_soon_threadsafe(_deliver, job.future, result, failure)
            # Nothing is kept while there is nothing to do.
            here.main_event_loop = None
            del job, result, failure


def _call(job: _Job) -> tuple[Any, BaseException | None]:
    if job.future.cancelled():
        return None, None
    try:
        return job.context.run(job.function, *job.args), None
    except StopIteration as error:  # of a bare `next(…)`
        # No future can carry one.
        failure = RuntimeError(f"{job.function!r} raised StopIteration")
        failure.__cause__ = error
        return None, failure
    except BaseException as error:
        del job  # which leads to the error, by way of the future, and the error to this frame
        return None, error


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # who waited was cancelled
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def _take_over(context: Context) -> None:
    """Set what was changed in this context here, too."""
    for variable, value in context.items():
        try:
            if variable.get() is value:
                continue
        except LookupError:
            pass
        variable.set(value)


#: All of this process.
APP_THREADS = Threads()
