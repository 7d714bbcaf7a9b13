"""A Wattfare service on a bare socket: it answers byte for byte as a test scripts it, and records
the requests. It is strict: a request that is not clean HTTP/1.1 fails the test.

An answer is a sequence of parts. Bytes are sent, an event is awaited, and a function is called with
the connection (:func:`reset`, :func:`close`, :func:`hang`). After the last part, the connection
waits for the next request.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from support.patience import PATIENCE

Part = bytes | threading.Event | Callable[["Connection"], None]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    connection: int

    @property
    def headers(self) -> dict[str, str]:
        """The headers by lower-case name. No name may be repeated."""
        headers = {name.lower(): value for name, value in self.fields}
        assert len(headers) == len(self.fields), f"a header was sent twice:{self.fields}"
        return headers

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Connection:
    """One connection to us."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        #: Set once the client has closed its side.
        self.gone = threading.Event()

    def play(self, parts: tuple[Part, ...]) -> None:
        for part in parts:
            if isinstance(part, bytes):
                self.sock.sendall(part)
            elif isinstance(part, threading.Event):
                assert part.wait(PATIENCE), "the event that the script waits for was not set"
            else:
                part(self)

    def read(self) -> bytes:
        """Reads some bytes; none at the end."""
        try:
            data = self.sock.recv(65_536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.gone.set()
        return data


class Ended(Exception):  # noqa: N818  # it is no error
    """The script has ended this connection."""


def reset(connection: Connection) -> None:
    """Breaks the connection with RST."""
    linger = struct.pack("ii", 1, 0)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raise Ended


def close(connection: Connection) -> None:
    """Closes the connection with FIN."""
    with suppress(OSError):
        connection.sock.shutdown(socket.SHUT_WR)
    raise Ended


def hang(connection: Connection) -> None:
    """Sends nothing until the client disconnects or the test ends."""
    while connection.read():
        pass
    raise Ended


class Wire:
    """The server."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._script: deque[tuple[Part, ...]] = deque()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._news = threading.Condition()
        self.seen: list[Seen] = []
        self.connections: list[Connection] = []
        self.faults: list[str] = []
        self.always: tuple[Part, ...] | None = None
        self.port: int = self._listener.getsockname()[1]
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def then(self, *parts: Part) -> Self:
        """Scripts the answer to the next unanswered request."""
        self._script.append(parts)
        return self

    @property
    def last(self) -> Seen:
        """The latest request."""
        return self.seen[-1]

    def wait_for(self, what: Callable[[], Any]) -> None:
        """Waits until the condition holds. It is checked at each connection, each request and each
        end of one."""
        with self._news:
            assert self._news.wait_for(what, PATIENCE), (
                "the condition that the test waits for never held"
            )

    def start(self) -> None:
        self._go(self._accept)

    def stop(self) -> None:
        self._stopping = True
        # A listener that a thread waits on wakes up for a connection, but not for its own close.
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._threads[0].join(PATIENCE)
        self._listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _go(self, what: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=what, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._stopping:
                sock.close()
                return
            connection = Connection(sock, len(self.connections))
            self.connections.append(connection)
            self._tell()
            self._go(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_side=True)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (seen := self._read(connection)) is not None:
                self.seen.append(seen)
                parts = self._script.popleft() if self._script else self.always
                self._tell()
                if parts is None:
                    self.faults.append(f"no answer is scripted to {seen.method} {seen.target}")
                    return
                connection.play(parts)
        except (Ended, OSError):
            pass
        except AssertionError as error:
            self.faults.append(str(error))
        finally:
            connection.sock.close()
            connection.gone.set()
            self._tell()

    def _read(self, connection: Connection) -> Seen | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.read()
            if not more:
                self._check(not data, f"half a request: {data!r}")
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self._check(
            re.fullmatch(rb"[A-Z]+ [\x21-\x7e]+ HTTP/1\.1", first), f"no request line: {first!r}"
        )
        method, target, _ = first.decode("ascii").split(" ")
        fields: list[tuple[str, str]] = []
        for line in lines:
            name, _, value = line.partition(b":")
            clean = re.fullmatch(rb"[A-Za-z0-9-]+", name) and re.fullmatch(rb"[ -~]*", value)
            self._check(clean, f"no clean header: {line!r}")
            fields.append((name.decode("ascii"), value.decode("latin-1").strip()))
        names = [name.lower() for name, _ in fields]
        self._check(names.count("host") == 1, f"one host, not {names}")
        self._check("transfer-encoding" not in names, "a body without its length")
        length = next((int(v) for n, v in fields if n.lower() == "content-length"), 0)
        parts = [body]
        size = len(body)
        while size < length:
            more = connection.read()
            if not more:
                return None
            parts.append(more)
            size += len(more)
        self._check(size == length, "more than one request at a time")
        return Seen(method, target, fields, b"".join(parts), connection.number)

    def _check(self, holds: object, fault: str) -> None:
        if not holds:
            self.faults.append(fault)
            raise Ended


@contextmanager
def run_wire(tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Runs a server until the block ends."""
    wire = Wire(tls)
    wire.start()
    try:
        yield wire
    finally:
        wire.stop()
    assert not wire.faults, wire.faults


# -- answers, in bytes


def answer(
    status: int = 200,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    content_type: str = "application/json",
) -> bytes:
    """A whole answer."""
    fields = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
    return head(status, fields) + body


def head(status: int, fields: dict[str, str]) -> bytes:
    """The head of an answer."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def json_answer(value: Any, status: int = 200, **headers: str) -> bytes:
    """A whole answer in JSON; ``retry_after="1"`` becomes the header ``retry-after``."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, json.dumps(value).encode(), fields)


def error_answer(code: str, status: int, message: str = "No.", **headers: str) -> bytes:
    """An error of the protocol."""
    return json_answer({"error": {"code": code, "message": message}}, status, **headers)


#: The head of a chunked event stream.
STREAM = head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
#: The end of a chunked body.
END = b"0\r\n\r\n"


def piece(data: bytes) -> bytes:
    """A part of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """An event as bytes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def delta(text: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a streamed completion."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": content, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **fields}


def streamed(*values: Any) -> bytes:
    """A whole streamed answer with each event in its own part, including ``[DONE]``."""
    pieces = [piece(event(value)) for value in (*values, "[DONE]")]
    return STREAM + b"".join(pieces) + END


def completion(text: str = "Hello.", **fields: Any) -> dict[str, Any]:
    """A whole completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "test/model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "cost": 0.000007},
        **fields,
    }


STATUS = {
    "connected": True,
    "limits": {"monthlyUsd": 20},
    "usage": {"monthlyUsd": 0.25},
    "remainingUsd": 19.75,
}
SESSION = {"token": "a.jwt.token", "expiresAt": 1_800_000_000}


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port to which no connection is completed: its queue is full and is never accepted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting: list[socket.socket] = []
        try:
            for _ in range(8):
                sock = socket.socket()
                sock.setblocking(False)
                waiting.append(sock)
                sock.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


@dataclass
class Recorder:
    """Records the arguments of its calls."""

    calls: list[Any] = field(default_factory=list)

    def __call__(self, *args: Any) -> None:
        self.calls.append(args[0] if len(args) == 1 else args)
