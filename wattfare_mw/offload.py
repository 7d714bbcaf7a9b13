"""Work that grows with what a client sends runs in a thread if it is large, so that the event loop
goes on meanwhile."""

from __future__ import annotations

from .threads import Threads

#: A body of up to so many bytes is read on the event loop. A thread would take longer.
LARGE_BODY = 64 * 2**10

# Two of their own: more would only compete for the interpreter, and the app's functions may hold
# all of theirs for long.
_threads = Threads(2)

#: Call a function in one of these threads, and return its result.
in_thread = _threads.run
