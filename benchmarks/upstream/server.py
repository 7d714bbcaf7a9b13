"""The server of the fake upstream: HTTP/1.1 on epoll, without an HTTP library.

A request takes one ``recv`` and one ``send``. Between them, the server only searches for the end of
the headers, the content length and two words in the body. Streams take turns after each event, so
no stream waits for the end of another one.
"""

from __future__ import annotations

import re
import select
import socket

from . import answers

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_IDLE = answers.IDLE_MODEL.encode()
_READ = 2**18


class _Connection:
    """A client, the received part of its request, and the unsent part of its answer."""

    __slots__ = ("chunks", "place", "received", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.chunks: list[bytes] = []
        self.place = 0
        self.unsent = b""


class Server:
    """Serves the clients of a listening socket until the process ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._flowing: dict[int, _Connection] = {}

    def run(self) -> None:
        listener, connections, flowing = self._listener, self._connections, self._flowing
        listener.setblocking(False)
        self._poll.register(listener.fileno(), select.EPOLLIN)
        while True:
            for fd, events in self._poll.poll(0 if flowing else -1):
                connection = connections.get(fd)
                if connection is None:
                    self._accept()
                elif events & (select.EPOLLHUP | select.EPOLLERR):
                    self._drop(fd)
                elif events & select.EPOLLOUT:
                    self._poll.modify(fd, select.EPOLLIN)
                    self._write(fd, connection, connection.unsent)
                else:
                    self._read(fd, connection)
            for fd, connection in list(flowing.items()):
                self._next_chunk(fd, connection)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = _Connection(sock)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, fd: int) -> None:
        self._flowing.pop(fd, None)
        self._connections.pop(fd).sock.close()  # this also removes it from the poll

    def _read(self, fd: int, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(fd)
            return
        if connection.received:
            data = connection.received + data
        end = _request_end(data)
        if end is None:
            connection.received = data
            return
        connection.received = data[end:]
        answer = _answer(data)
        if isinstance(answer, bytes):
            self._write(fd, connection, answer)
        else:
            connection.chunks, connection.place = answer, 0
            self._flowing[fd] = connection

    def _next_chunk(self, fd: int, connection: _Connection) -> None:
        chunk = connection.chunks[connection.place]
        connection.place += 1
        if connection.place == len(connection.chunks):
            connection.chunks = []
            del self._flowing[fd]
        self._write(fd, connection, chunk)

    def _write(self, fd: int, connection: _Connection, data: bytes) -> None:
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(fd)
            return
        connection.unsent = data[sent:]
        if connection.unsent:  # the client reads too slowly: wait until it has read more
            self._flowing.pop(fd, None)
            self._poll.modify(fd, select.EPOLLOUT)
        elif connection.chunks:
            self._flowing[fd] = connection


def _request_end(data: bytes) -> int | None:
    """The end of the first request in these bytes. None if it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end)
    if length is not None:
        end += 4 + int(length[1])
        return end if end <= len(data) else None
    if _CHUNKED.search(data, 0, end):
        last = data.find(b"0\r\n\r\n", end)
        return None if last < 0 else last + 5
    return end + 4


def _answer(request: bytes) -> bytes | list[bytes]:
    path = request[: request.find(b"\r\n")].split(b" ")[1].partition(b"?")[0]
    if path.endswith(b"/chat/completions"):
        if _IDLE in request:
            return answers.IDLE
        return answers.STREAM if _STREAM.search(request) else answers.COMPLETION
    if path.endswith(b"/sessions"):
        return answers.SESSION
    if path.endswith(b"/models"):
        return answers.MODELS
    return answers.NOTHING
