"""Private: lets one payer read one large body at a time.

Two threads read all large bodies of a process. Without turns, the bodies of one payer could fill
the queue, and the bodies of other payers would wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

from .offload import in_thread
from .transport.base import LoopPool

_locks: LoopPool[WeakValueDictionary[Hashable, asyncio.Lock]] = LoopPool(WeakValueDictionary)


def turn_of(payer: Hashable) -> asyncio.Lock:
    """Wait for the turn of this payer, and hold it during an ``async with`` block."""
    locks = _locks.get()
    lock = locks.get(payer)
    if lock is None:
        lock = locks[payer] = asyncio.Lock()
    return lock


async def in_turn(payer: Hashable, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread when it is this payer's turn, and return its result."""
    async with turn_of(payer):
        return await in_thread(function, *args)
