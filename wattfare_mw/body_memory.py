"""Private: limits the bytes of large request bodies in one process, in total and for each payer.

Small bodies are not counted, so large bodies never cause a small one to be refused.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import WattfareError
from .offload import LARGE_BODY

#: The maximum bytes of all large bodies in a process, and of one payer's large bodies.
MAX_BYTES = 256 * 2**20
MAX_PAYER_BYTES = 64 * 2**20
#: How long a refused client should wait, in seconds.
RETRY_SECONDS = 2


class BodyMemory:
    """Counts the bytes of large bodies in memory. It is thread-safe."""

    def __init__(self, limit: int = MAX_BYTES, payer_limit: int = MAX_PAYER_BYTES) -> None:
        self._limit = limit
        self._payer_limit = payer_limit
        self._lock = threading.Lock()
        self._total = 0
        self._payers: dict[Hashable, int] = {}

    def claim(self, payer: Hashable) -> BodyClaim:
        """Create a claim for one body of this payer. It must be released at the end."""
        return BodyClaim(self, payer)

    def __deepcopy__(self, _memo: object) -> BodyMemory:
        return BodyMemory(self._limit, self._payer_limit)  # a copy starts without bodies

    def take(self, payer: Hashable, size: int) -> None:
        with self._lock:
            held = self._payers.get(payer, 0)
            if self._total + size > self._limit or held + size > self._payer_limit:
                raise WattfareError(
                    "Too many large requests are in progress. Try again later.",
                    code="upstream",
                    status=503,
                    retry_after=RETRY_SECONDS,
                )
            self._total += size
            self._payers[payer] = held + size

    def free(self, payer: Hashable, size: int) -> None:
        with self._lock:
            self._total -= size
            left = self._payers[payer] - size
            if left:
                self._payers[payer] = left
            else:
                del self._payers[payer]


class BodyClaim:
    """The memory of one body, until it is released."""

    __slots__ = ("_memory", "_payer", "_size")

    def __init__(self, memory: BodyMemory, payer: Hashable) -> None:
        self._memory = memory
        self._payer = payer
        self._size = 0

    def grow(self, size: int) -> None:
        """Record how many bytes of the body have arrived.

        Raises:
            WattfareError: ``upstream``, 503; there is not enough memory.
        """
        if size > LARGE_BODY and size > self._size:
            self._memory.take(self._payer, size - self._size)
            self._size = size

    @contextmanager
    def while_reading(self) -> Generator[None]:
        """In this block, functions that read a body can grow this claim with :func:`grow`."""
        token = _READING.set(self)
        try:
            yield
        finally:
            _READING.reset(token)

    def release(self) -> None:
        """Release the memory of the body. Further calls of this method do nothing."""
        size, self._size = self._size, 0
        if size:
            self._memory.free(self._payer, size)


# The claim of the body that is being read. It is in a context variable, because an adapter's
# function that reads a body has no parameter for it.
_READING: ContextVar[BodyClaim | None] = ContextVar("wattfare_reading", default=None)


def grow(size: int) -> None:
    """Grow the claim of the body that is being read, if it has one. See :meth:`BodyClaim.grow`."""
    claim = _READING.get()
    if claim is not None:
        claim.grow(size)
