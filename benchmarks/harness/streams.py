"""Opens many streams at once, and measures the time to a stream's first byte."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..upstream import answers
from .load import Load
from .processes import BenchError, Server

#: How many streams are opened at a time, so that the server's backlog does not overflow.
_AT_ONCE = 100
_TIMEOUT_SECONDS = 60


def _request(load: Load) -> bytes:
    headers = {"host": "127.0.0.1", "content-length": str(len(load.body)), **load.headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{load.method} {load.path} HTTP/1.1\r\n{fields}\r\n".encode() + load.body


@contextmanager
def open_streams(server: Server, load: Load, count: int) -> Iterator[None]:
    """Open this many streams until the end of the block. Each has received its first event."""
    request = _request(load)
    opened: list[socket.socket] = []
    try:
        for start in range(0, count, _AT_ONCE):
            batch = [_ask(server, request) for _ in range(min(_AT_ONCE, count - start))]
            opened += batch
            _wait_for_first_event(server, batch)
        yield
    finally:
        for sock in opened:
            sock.close()


def _ask(server: Server, request: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=_TIMEOUT_SECONDS)
    sock.sendall(request)
    return sock


def _wait_for_first_event(server: Server, batch: list[socket.socket]) -> None:
    waiting = {sock.fileno(): sock for sock in batch}
    seen = dict.fromkeys(waiting, b"")
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while waiting:
        if time.monotonic() > deadline:
            raise BenchError(f"{server.name}: {len(waiting)} streams did not begin")
        for fd, _ in poll.poll(1000):
            data = waiting[fd].recv(65536)
            seen[fd] += data
            if answers.FIRST_EVENT in seen[fd]:
                poll.unregister(fd)
                del waiting[fd]
            elif not data:
                raise BenchError(f"{server.name}: a stream ended: {seen[fd][:300]!r}")


class Reader:
    """A client that requests one stream after another on one connection."""

    def __init__(self, server: Server, load: Load) -> None:
        self._request = _request(load)
        self._server = server
        self._sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def first_byte(self) -> float:
        """Request a stream and read all of it. Returns the time to the first event, in
        milliseconds."""
        seen = b""
        began = time.perf_counter()
        self._sock.sendall(self._request)
        while answers.FIRST_EVENT not in seen:
            seen += self._receive()
        took = time.perf_counter() - began
        while not seen.endswith(b"\r\n0\r\n\r\n"):
            seen += self._receive()
        return took * 1e3

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> bytes:
        data = self._sock.recv(2**18)
        if not data:
            raise BenchError(f"{self._server.name}: the connection was closed")
        return data
