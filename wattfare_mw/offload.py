"""Private: runs long work in a thread, so that it does not block the event loop."""

from __future__ import annotations

from .threads import Threads

#: A body of up to this many bytes is parsed on the event loop, which is faster than in a thread.
LARGE_BODY = 64 * 2**10

# These are separate threads, because the app's functions may block all threads of their own pool.
# More than two would only compete for the GIL.
_threads = Threads(2)

#: Call a function in one of these threads, and return its result.
in_thread = _threads.run
