"""Limits for the head of an answer over httpx or httpx2.

A server may send any number of interim responses, such as "103 Early Hints", before its answer.
httpcore skips them without a limit, and its read timeout starts again with each piece.
"""

from __future__ import annotations

import time
from typing import Any

#: The maximum number of bytes until an answer's headers are complete. The last of them may belong
#: to the body.
MAX_HEAD_BYTES = 2**18


class HeadLimit:
    """Limits what one connection may receive between a request and the headers of its answer. The
    time is the read timeout of the request.

    Args:
        httpx: the library, httpx or httpx2.
    """

    __slots__ = ("_deadline", "_httpx", "_left")

    def __init__(self, httpx: Any) -> None:
        self._httpx = httpx
        self.begin()

    def begin(self) -> None:
        """Start with the next request. The time starts with the first read."""
        self._left: int | None = MAX_HEAD_BYTES
        self._deadline: float | None = None

    def end(self) -> None:
        """Allow everything: the headers are complete."""
        self._left = None

    def timeout(self, timeout: float | None) -> float | None:
        """The timeout of the next read, in seconds.

        Raises:
            httpx.ReadTimeout: the time has run out.
        """
        if self._left is None or timeout is None:
            return timeout
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + timeout
        if now >= self._deadline:
            raise self._httpx.ReadTimeout("The headers of the answer did not arrive in time.")
        return self._deadline - now

    def count(self, data: bytes) -> bytes:
        """Count what was read, and return it.

        Raises:
            httpx.RemoteProtocolError: too many bytes arrived.
        """
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise self._httpx.RemoteProtocolError("The headers of the answer are too large.")
        return data

    def apply(self, transport: Any) -> None:
        """Limit the only connection of this transport."""
        # httpcore documents it as an argument of its pool, but httpx does not pass it on.
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if backend is not None:
            wrap = _AsyncBackend if hasattr(transport, "aclose") else _Backend
            vars(pool)["_network_backend"] = wrap(backend, self)


class _Backend:
    """A network backend whose streams have a limit."""

    def __init__(self, backend: Any, limit: HeadLimit) -> None:
        self._backend = backend
        self._limit = limit
        self.sleep = backend.sleep

    def connect_tcp(self, *args: Any, **options: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(*args, **options), self._limit)


class _Stream:
    def __init__(self, stream: Any, limit: HeadLimit) -> None:
        self._stream = stream
        self._limit = limit
        self.write = stream.write
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = self._limit
        return limit.count(self._stream.read(max_bytes, limit.timeout(timeout)))

    def start_tls(self, *args: Any, **options: Any) -> _Stream:
        return _Stream(self._stream.start_tls(*args, **options), self._limit)


class _AsyncBackend:
    """:class:`_Backend`, for event loops."""

    def __init__(self, backend: Any, limit: HeadLimit) -> None:
        self._backend = backend
        self._limit = limit
        self.sleep = backend.sleep

    async def connect_tcp(self, *args: Any, **options: Any) -> _AsyncStream:
        return _AsyncStream(await self._backend.connect_tcp(*args, **options), self._limit)


class _AsyncStream:
    def __init__(self, stream: Any, limit: HeadLimit) -> None:
        self._stream = stream
        self._limit = limit
        self.write = stream.write
        self.aclose = stream.aclose
        self.get_extra_info = stream.get_extra_info

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore passes it
    ) -> bytes:
        limit = self._limit
        return limit.count(await self._stream.read(max_bytes, limit.timeout(timeout)))

    async def start_tls(self, *args: Any, **options: Any) -> _AsyncStream:
        return _AsyncStream(await self._stream.start_tls(*args, **options), self._limit)
