"""Work that grows with what a client sends runs in a thread if it is large, so that the event loop
goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .transport.base import Pool

T = TypeVar("T")

#: A body of up to so many bytes is read on the event loop. A thread would take longer.
LARGE_BODY = 64 * 2**10
#: More threads would only compete for the interpreter.
_THREADS = 2

_pool: Pool[ThreadPoolExecutor] = Pool(
    lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="wattfare-body")
)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call ``function`` in a thread, and return its result."""
    return await asyncio.get_running_loop().run_in_executor(_pool.get(), function, *args)
