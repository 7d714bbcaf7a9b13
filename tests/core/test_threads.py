"""Threads for the app's sync functions: values, errors, context, cancellation, forks."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from support.patience import PATIENCE
from support.service import environment

from wattfare_mw.app_functions import AppFunction
from wattfare_mw.threads import MOST_THREADS, Threads

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")
NEW: ContextVar[str] = ContextVar("NEW")


@pytest.fixture
def threads() -> Threads:
    return Threads(3)


async def test_values_and_errors_are_returned(threads: Threads) -> None:
    assert await threads.run(lambda *args: args, 1, "two") == (1, "two")
    assert await threads.run(threading.get_ident) != threading.get_ident()

    def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("no"), KeyError("no"), SystemExit(3)):
        with pytest.raises(type(error)) as caught:
            await threads.run(fail, error)
        assert caught.value is error
    with pytest.raises(RuntimeError, match="StopIteration") as stopped:
        await threads.run(next, iter(()))
    assert isinstance(stopped.value.__cause__, StopIteration)


async def test_context_variables_are_copied_both_ways(threads: Threads) -> None:
    def change() -> str:
        before = WHO.get()
        WHO.set("thread")
        NEW.set("new")
        return before

    WHO.set("caller")
    assert await threads.run(change) == "caller"
    assert (WHO.get(), NEW.get()) == ("thread", "new")

    def fail() -> None:
        WHO.set("failed")
        raise KeyError

    with pytest.raises(KeyError):
        await threads.run(fail)
    assert WHO.get() == "failed"

    async def other() -> str:
        WHO.set("other")
        await threads.run(lambda: WHO.set("other's thread"))
        return WHO.get()

    assert await asyncio.create_task(other()) == "other's thread"
    assert WHO.get() == "failed"


async def test_threads_do_not_exceed_concurrent_functions(threads: Threads) -> None:
    names = {await threads.run(threading.get_ident) for _ in range(20)}
    assert len(names) == 1
    barrier = threading.Barrier(4)
    both = asyncio.gather(*(threads.run(barrier.wait) for _ in range(3)))
    await asyncio.to_thread(barrier.wait, PATIENCE)
    assert sorted(await both) != []
    assert threads._threads <= 3
    assert await asyncio.gather(*(threads.run(abs, -n) for n in range(50))) == list(range(50))
    assert threads._threads <= 3


async def test_cancelled_caller_stops_waiting(threads: Threads) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)
    called: list[str] = []

    def wait() -> None:
        begun.release()
        gate.wait(PATIENCE)

    holding = [asyncio.create_task(threads.run(wait)) for _ in range(3)]
    for _ in holding:
        await asyncio.to_thread(begun.acquire)
    late = asyncio.create_task(threads.run(called.append, "late"))
    await asyncio.sleep(0)
    for task in (late, holding[0]):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.set()
    await asyncio.gather(*holding[1:])
    assert await threads.run(abs, -1) == 1
    assert called == []


async def test_threads_keep_no_reference(threads: Threads) -> None:
    class Thing:
        pass

    thing = Thing()
    left = weakref.ref(thing)
    await threads.run(lambda it: None, thing)
    with pytest.raises(AttributeError):
        await threads.run(lambda it: it.nothing, thing)
    del thing
    # The thread drops its last job a moment after it has reported it.
    for _ in range(100):
        gc.collect()
        if left() is None:
            break
        await threads.run(abs, -1)
    assert left() is None


async def test_thread_limit_of_the_system_raises(threads: Threads, monkeypatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    start = threading.Thread.start
    called: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        await threads.run(called.append, 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    await threads.run(called.append, 2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    await asyncio.gather(*(threads.run(called.append, n) for n in (3, 4, 5)))
    assert sorted(called) == [2, 3, 4, 5]


def test_loops_share_the_threads(threads: Threads) -> None:
    for _ in range(3):
        assert asyncio.run(threads.run(abs, -1)) == 1

    async def leave(gate: threading.Event, begun: threading.Event) -> None:
        def wait() -> None:
            begun.set()
            gate.wait(PATIENCE)

        task = asyncio.create_task(threads.run(wait))
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()

    gate, begun = threading.Event(), threading.Event()
    asyncio.run(leave(gate, begun))
    gate.set()  # its loop is closed
    assert asyncio.run(threads.run(abs, -1)) == 1


async def test_async_function_within_runs_on_the_callers_loop() -> None:
    async def look_up() -> Any:
        return asyncio.get_running_loop()

    function = AppFunction(lambda: async_to_sync(look_up)())
    assert await function.call_async() is asyncio.get_running_loop()


async def test_awaitable_result_is_awaited() -> None:
    async def later() -> str:
        return "user_1"

    assert await AppFunction(lambda: later()).call_async() == "user_1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_child_has_its_own_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "0"]), done.stderr


FORKING = """
import asyncio, os
from wattfare_mw.threads import APP_THREADS
print(asyncio.run(APP_THREADS.run(abs, -1)), flush=True)
child = os.fork()
if not child:
    print(asyncio.run(APP_THREADS.run(abs, -1)), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def test_process_exit_does_not_wait_for_the_threads() -> None:
    code = """
import asyncio, threading
from wattfare_mw.threads import APP_THREADS

async def main():
    begun = threading.Event()
    def wait():
        begun.set()
        threading.Event().wait()
    task = asyncio.create_task(APP_THREADS.run(wait))
    await asyncio.to_thread(begun.wait)
    task.cancel()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), timeout=PATIENCE, check=True)


def test_thread_limit_equals_starlettes() -> None:
    assert MOST_THREADS == 40
