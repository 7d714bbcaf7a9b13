"""How many calls of one payer run at once, in this process. The middleware and the service count
by the same rule."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from types import TracebackType

from .errors import WattfareRateLimitError

#: How long a refused client should wait, in seconds: calls end at any moment.
RETRY_SECONDS = 1


class CallsAtOnce:
    """Counts the calls that run, by key. Threads may share it. A key without a call takes no
    memory.

    Args:
        most: the most calls of one key at once.
        refusal: the message of the error for one more.
    """

    def __init__(self, most: int, refusal: str) -> None:
        self._most = most
        self._refusal = refusal
        self._counts: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, _memo: object) -> CallsAtOnce:
        return CallsAtOnce(self._most, self._refusal)  # a copy has no calls

    def hold(self, key: Hashable) -> Slot:
        """Count a call, until its slot is released.

        Raises:
            WattfareRateLimitError: 429; this key has as many calls as it may have.
        """
        with self._lock:
            count = self._counts.get(key, 0)
            if count < self._most:
                self._counts[key] = count + 1
                return Slot(self, key)
        raise WattfareRateLimitError(self._refusal, retry_after=RETRY_SECONDS)

    def release(self, slot: Slot) -> None:
        """End a call. A second time changes nothing."""
        with self._lock:
            if not slot.held:
                return
            slot.held = False
            count = self._counts[slot.key] - 1
            if count:
                self._counts[slot.key] = count
            else:
                del self._counts[slot.key]


class Slot:
    """A call that counts. Release it, or use it in a ``with`` block."""

    __slots__ = ("_calls", "held", "key")

    def __init__(self, calls: CallsAtOnce, key: Hashable) -> None:
        self._calls = calls
        self.key = key
        self.held = True

    def release(self) -> None:
        """End the call. A second time changes nothing."""
        self._calls.release(self)

    def __enter__(self) -> None:
        """The call runs."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
