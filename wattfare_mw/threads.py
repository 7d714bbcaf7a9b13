"""Private: threads in which the app's sync functions run under ASGI, so that they may block.

asyncio's default executor has only a few threads, and it also looks up host names. Slow functions
would block each other and these lookups. The executor is also slower than this module, which puts
only a tuple in a queue for each function.
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

#: The maximum number of functions that run at once in a process, as in Starlette.
MOST_THREADS = 40


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    context: Context
    function: Callable[..., Any]
    args: tuple[Any, ...]


class Threads:
    """Runs functions for the event loops of this process. A thread starts when it is needed, and
    then waits for more work. Threads are daemons, so the process can exit at any time."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        self._most = most
        self._begin()
        if hasattr(os, "register_at_fork"):
            # A forked child does not have the threads of its parent.
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread, with the caller's context variables, and return its result.
        The caller sees the function's changes to context variables.

        If the caller is cancelled, a running function continues, and a waiting function is not
        called.

        Raises:
            BaseException: the function's exception. A StopIteration becomes a RuntimeError.
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
        except RuntimeError:  # the system cannot start more threads
            with self._lock:
                self._threads -= 1
                if self._threads:  # another thread will run this job
                    return
            future.cancel()
            raise

    def _work(self) -> None:
        jobs, lock = self._jobs, self._lock
        # If the function calls `async_to_sync`, asgiref looks for the event loop here.
        here: Any = SyncToAsync.threadlocal
        here.main_event_loop_pid = os.getpid()
        while True:
            job = jobs.get()
            here.main_event_loop = job.loop
            result, failure = _call(job)
            with lock:  # before the caller gets the result and submits its next job
                self._unfinished -= 1
            # The event loop may be closed. Then the caller no longer waits.
            with suppress(RuntimeError):
                job.loop.call_soon_threadsafe(_deliver, job.future, result, failure)
            # An idle thread keeps no references.
            here.main_event_loop = None
            del job, result, failure


def _call(job: _Job) -> tuple[Any, BaseException | None]:
    if job.future.cancelled():
        return None, None
    try:
        return job.context.run(job.function, *job.args), None
    except StopIteration as error:  # from a `next(…)` in the function
        # A future cannot have a StopIteration.
        failure = RuntimeError(f"{job.function!r} raised StopIteration")
        failure.__cause__ = error
        return None, failure
    except BaseException as error:
        del job  # break a reference cycle: future, error, traceback, this frame
        return None, error


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # the caller was cancelled
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def _take_over(context: Context) -> None:
    """Copy the context variables of this context that have changed."""
    for variable, value in context.items():
        try:
            if variable.get() is value:
                continue
        except LookupError:
            pass
        variable.set(value)


#: The threads of this process.
APP_THREADS = Threads()
