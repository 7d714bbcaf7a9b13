"""Private: limits how many calls of one payer run at once in this process. Both the middleware and
the service use it."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from .errors import WattfareRateLimitError

#: How long a refused client should wait, in seconds. A running call can end at any moment.
RETRY_SECONDS = 1


class CallsAtOnce:
    """Counts the running calls of each key. It is thread-safe. A key without running calls uses no
    memory.

    Args:
        most: the maximum number of running calls per key.
        refusal: the error message for a call above this limit.
    """

    def __init__(self, most: int, refusal: str) -> None:
        self._most = most
        self._refusal = refusal
        self._counts: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, _memo: object) -> CallsAtOnce:
        return CallsAtOnce(self._most, self._refusal)  # a copy starts without calls

    def hold(self, key: Hashable) -> Slot:
        """Count a call until its slot is released.

        Raises:
            WattfareRateLimitError: 429; this key has reached its limit.
        """
        self.add(key)
        return Slot(self, key)

    def add(self, key: Hashable) -> None:
        """Count a call, until :meth:`remove` is called for it.

        Raises:
            WattfareRateLimitError: see :meth:`hold`.
        """
        with self._lock:
            count = self._counts.get(key, 0)
            if count < self._most:
                self._counts[key] = count + 1
                return
        raise WattfareRateLimitError(self._refusal, retry_after=RETRY_SECONDS)

    def remove(self, key: Hashable) -> None:
        """Stop counting a call that :meth:`add` has counted."""
        with self._lock:
            count = self._counts[key] - 1
            if count:
                self._counts[key] = count
            else:
                del self._counts[key]


class Slot:
    """A counted call. It counts until it is released."""

    __slots__ = ("_calls", "_held", "_key")

    def __init__(self, calls: CallsAtOnce, key: Hashable) -> None:
        self._calls = calls
        self._key = key
        self._held = threading.Lock()  # the first thread that ends the call acquires this

    def release(self) -> None:
        """Stop counting the call. Further calls of this method do nothing."""
        if self._held.acquire(blocking=False):
            self._calls.remove(self._key)
