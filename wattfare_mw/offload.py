"""Private: runs large work in a thread, so that the event loop stays free."""

from __future__ import annotations

from .threads import Threads

#: A body of up to this many bytes is read on the event loop. A thread would take longer.
LARGE_BODY = 64 * 2**10

# Two separate threads. More threads would only compete for the interpreter, and the app's functions
# may block all threads of their pool.
_threads = Threads(2)

#: Call a function in one of these threads, and return its result.
in_thread = _threads.run
