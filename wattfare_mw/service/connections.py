"""Limits on what a client can send before it is authenticated: the size of a request's head, the
time it takes, and the number of connections.

With httptools, uvicorn limits neither the size nor the time, and it counts the connections of all
clients together. So this is uvicorn's protocol with the limits added.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..errors import WattfareError, invalid_request
from ..transport.base import LoopPool
from ..transport.idle import IdleTimer, IdleWait

#: The most bytes of a request's line and headers.
MAX_HEAD_BYTES = 64 * 2**10
#: How long the head of a request may take to arrive, in seconds. For the first request, the time
#: begins with the connection.
HEAD_SECONDS = 10.0
#: The most connections of one process. Beyond it, the connection that has waited longest for a
#: request is closed, of the address that has the most such connections.
MAX_CONNECTIONS = 4096


class LimitedProtocol(HttpToolsProtocol):
    """One connection. It is idle until the head of a request is complete, and again after the
    response."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle = _IDLE.get()
        self._address = ""
        self._in_head = False
        self._head_bytes = 0
        self._wait: _HeadWait | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:
            self._address = self.client[0]
        self._idle.add(self._address, self)
        self._wait = _HeadWait(_TIMERS.get(), self)
        if len(self.connections) > MAX_CONNECTIONS:
            self._idle.close_one()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._idle.discard(self._address, self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
        elif self._head_bytes > MAX_HEAD_BYTES:
            refusal = f"The headers of a request have at most {MAX_HEAD_BYTES:,} bytes."
            self.refuse(invalid_request(refusal, 431))
        elif self._wait is None:
            self._wait = _HeadWait(_TIMERS.get(), self)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # uvicorn answers with 400
        self._in_head = False
        self._end_wait()
        self._idle.discard(self._address, self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._idle.add(self._address, self)

    def refuse(self, error: WattfareError) -> None:
        """Answer with this error, and close the connection."""
        self._end_wait()
        if self.transport.is_closing():
            return
        body = error.to_json()
        head = (
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        )
        self.transport.write(STATUS_LINE[error.http_status] + head + body)
        self.transport.close()

    def close_idle(self) -> None:
        """Close the connection, which has no request."""
        self._end_wait()
        self.transport.close()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _end_wait(self) -> None:
        if self._wait is not None:
            self._wait.end()
            self._wait = None


class _HeadWait(IdleWait):
    """Waits for the head of a request."""

    __slots__ = ("_protocol",)

    def __init__(self, timer: IdleTimer, protocol: LimitedProtocol) -> None:
        super().__init__(timer)
        self._protocol = protocol

    def timed_out(self) -> None:
        self._protocol.refuse(invalid_request("The request took too long to arrive.", 408))


class _IdleConnections:
    """The idle connections of a process, those of each address in the order in which they became
    idle."""

    def __init__(self) -> None:
        self._by_address: dict[str, dict[LimitedProtocol, None]] = {}

    def add(self, address: str, protocol: LimitedProtocol) -> None:
        self._by_address.setdefault(address, {})[protocol] = None

    def discard(self, address: str, protocol: LimitedProtocol) -> None:
        idle = self._by_address.get(address)
        if idle is not None:
            idle.pop(protocol, None)
            if not idle:
                del self._by_address[address]

    def close_one(self) -> None:
        """Close the oldest idle connection of the address that has the most of them."""
        most = max(self._by_address.values(), key=len, default=None)
        if most:
            next(iter(most)).close_idle()


_IDLE = LoopPool(_IdleConnections)
_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), HEAD_SECONDS))
