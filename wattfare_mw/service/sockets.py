"""Limits what a client can do with a connection before it is authenticated: the size and the time
of a request's headers, the overhead of a body, pipelined requests, unread responses, and the number
of connections.

With httptools, uvicorn itself limits only the total number of connections. The class in this module
is uvicorn's protocol with all of these limits.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from ..errors import WattfareError, invalid_request
from ..transport.base import LoopPool
from ..transport.idle import IdleTimer, IdleWait

#: The maximum size of a request's line and headers, in bytes.
MAX_HEAD_BYTES = 64 * 2**10
#: How long the headers of a request may take to arrive, in seconds. For the first request, the time
#: starts with the connection.
HEAD_SECONDS = 10.0
#: The maximum overhead of a body, in bytes: a base amount, plus one byte for each number of bytes
#: of the body. The sizes and the extensions of chunks, and trailers, are overhead.
MAX_AROUND_BODY = 64 * 2**10
BODY_BYTES_PER_BYTE_AROUND = 8
#: How many requests a client may send before the response to an earlier one is complete.
MAX_PIPELINED = 16
#: An unneeded body is read to its end, because many clients read the response only after they have
#: sent the whole request. These are the limits: a number of bytes, which is more than any call may
#: have, and a number of seconds.
UNREAD_BYTES = 32 * 2**20
UNREAD_SECONDS = 30.0
#: A client that reads fewer bytes of its response than this in this many seconds is disconnected.
SEND_SECONDS = 60.0
LEAST_SENT = 32 * 2**10
#: The maximum number of connections of one process. Above it, the service closes an idle
#: connection: the oldest one of the address with the most idle connections.
MAX_CONNECTIONS = 4096
#: The number of file descriptors that are kept free, for example for the database.
SPARE_DESCRIPTORS = 128


def raise_descriptors() -> None:
    """Raise the limit of file descriptors to what :data:`MAX_CONNECTIONS` need, or as far as the
    system allows. The default is often only 1,024."""
    if sys.platform == "win32":  # Windows has no such limit
        return
    import resource

    wanted = 2 * MAX_CONNECTIONS + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """The maximum number of connections of this process. Each needs two file descriptors, because
    one is for the call to the upstream."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(1, (soft - SPARE_DESCRIPTORS) // 2))


class LimitedProtocol(HttpToolsProtocol):
    """One connection. It is idle until the head of a request is complete, and again after the
    response."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle = _IDLE.get()
        self._address = ""
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._around_body = 0
        self._answering: RequestResponseCycle | None = None
        self._unread: int | None = None
        self._wait: IdleWait | None = None
        self._send_wait: _SendWait | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:
            self._address = self.client[0]
        self._idle.add(self._address, self)
        self._wait = _HeadWait(_HEAD_TIMERS.get(), self)
        if len(self.connections) > most_connections():
            self._idle.close_one()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._end_send_wait()
        self._idle.discard(self._address, self)
        if self._answering is not None:
            # uvicorn reports the disconnect only to the last request, which may be a pipelined one.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unread is not None:
            self._unread += len(data)
            if self._unread > UNREAD_BYTES:
                # The rest of the data is not needed, so it is not parsed. Tell the client that the
                # connection ends.
                if self.transport.can_write_eof() and not self.transport.is_closing():
                    self.transport.write_eof()
                return
        self._head_bytes += len(data)
        self._around_body += len(data)
        super().data_received(data)
        if self._in_head:
            self._around_body = 0
            if self._head_bytes > MAX_HEAD_BYTES:
                refusal = f"The headers of the request are larger than {MAX_HEAD_BYTES:,} bytes."
                self.refuse(invalid_request(refusal, 431))
            elif self._wait is None:
                self._wait = _HeadWait(_HEAD_TIMERS.get(), self)
            return
        self._head_bytes = 0
        if not self._in_body:
            self._around_body = 0
            self._keep_alive()
        elif self._around_body > MAX_AROUND_BODY:
            self.refuse(
                invalid_request(
                    "The chunks of the body are too small, or its trailers are too long."
                )
            )

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")  # uvicorn answers with 400
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # uvicorn answers with 400
        self._in_head = False
        self._in_body = True
        self._around_body = 0
        self._end_wait()
        self._idle.discard(self._address, self)
        super().on_headers_complete()
        if not self.pipeline:  # its turn has come
            self._answering = self.cycle

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are ignored
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._around_body -= size + size // BODY_BYTES_PER_BYTE_AROUND
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._unread is not None:
            self._unread = None
            self._end_wait()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        unread = self._in_body and not self.pipeline
        if self.pipeline:
            self._answering = self.pipeline[-1][0]  # the next one
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_sending()
            return
        self._idle.add(self._address, self)
        if unread:
            self._unread = 0
            self._unset_keepalive_if_required()
            self._wait = _BodyWait(_UNREAD_TIMERS.get(), self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._end_send_wait()

    def refuse(self, error: WattfareError) -> None:
        """Answer with this error, and close the connection."""
        self._end_wait()
        if self.transport.is_closing():
            return
        if not self._is_responding():
            body = error.to_json()
            head = (
                b"content-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n" % len(body)
            )
            self.transport.write(STATUS_LINE[error.http_status] + head + body)
        self.transport.close()
        self._await_sending()

    def close_idle(self) -> None:
        """Close the connection, which has no request. It is closed at once, even if its client
        has not read all of the last response."""
        self._end_wait()
        self._idle.discard(self._address, self)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        self.close_idle()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._await_sending()

    def _is_responding(self) -> bool:
        """True if a response is being sent, or is complete while its request still arrives."""
        cycle = self._answering
        return (
            cycle is not None
            and cycle.response_started
            and (self._in_body or not cycle.response_complete)
        )

    def _await_sending(self) -> None:
        """Start the timer for a client that does not read."""
        if self._send_wait is None and self.transport.get_write_buffer_size():
            self._send_wait = _SendWait(_SEND_TIMERS.get(), self.transport)

    def _keep_alive(self) -> None:
        """Start the idle timer again: uvicorn drops it after each byte that does not belong to a
        request."""
        waits = self._wait is not None or self.timeout_keep_alive_task is not None
        if not waits and self._answering is not None and self._answering.response_complete:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _end_wait(self) -> None:
        if self._wait is not None:
            self._wait.end()
            self._wait = None

    def _end_send_wait(self) -> None:
        if self._send_wait is not None:
            self._send_wait.end()
            self._send_wait = None


class _HeadWait(IdleWait):
    """Waits for the head of a request."""

    __slots__ = ("_protocol",)

    def __init__(self, timer: IdleTimer, protocol: LimitedProtocol) -> None:
        super().__init__(timer)
        self._protocol = protocol

    def timed_out(self) -> None:
        self._protocol.refuse(invalid_request("The request took too long to arrive.", 408))


class _BodyWait(_HeadWait):
    """Waits for the rest of a body whose response is complete."""

    __slots__ = ()

    def timed_out(self) -> None:
        self._protocol.close_idle()


class _SendWait(IdleWait):
    """Waits until the client reads what is being sent."""

    __slots__ = ("_left", "_transport")

    def __init__(self, timer: IdleTimer, transport: asyncio.Transport) -> None:
        super().__init__(timer)
        self._transport = transport
        self._left = transport.get_write_buffer_size()

    def timed_out(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left > self._left - LEAST_SENT:
            self._transport.abort()
        else:
            self._left = left
            self.since = self.now()
            self._timer.add(self)


class _IdleConnections:
    """The idle connections of a process, by address, in the order in which they became idle."""

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
_HEAD_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), HEAD_SECONDS))
_UNREAD_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), UNREAD_SECONDS))
_SEND_TIMERS = LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), SEND_SECONDS))
