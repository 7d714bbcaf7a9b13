"""A strict Wattfare service on a real socket. It checks every request and answers as a test scripts
it, byte by byte if necessary.

It runs on its own event loop in a thread. Every method may be called from any thread. None of them
waits, except ``next`` and those named ``wait_…``.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.patience import PATIENCE

#: Marks the body of a call of :mod:`support.victim`.
VICTIM = b'"victim'

SECRET_KEY = "sk_test_app1_dontyoutellanyone"

_KNOWN_HEADERS = {
    "/sessions": {"content-type", "content-length"},
    "/status": set(),
    "/models": set(),
    "/connections": {"content-length"},
    "/chat/completions": {
        *("content-type", "content-length", "x-request-id"),
        *("idempotency-key", "traceparent", "tracestate", "x-wattfare-on-low-budget"),
        *("x-wattfare-user", "x-wattfare-grant"),
    },
}
_ON_EVERY_REQUEST = {"host", "accept", "accept-encoding", "user-agent", "authorization"}
_METHODS = {
    "/sessions": "POST",
    "/status": "GET",
    "/models": "GET",
    "/connections": "DELETE",
    "/chat/completions": "POST",
}
_USER = re.compile(r"(?:[!-$&-~]|%[0-9A-F]{2})+")


class WrongRequestError(AssertionError):
    """The request does not follow the protocol."""


@dataclass
class Exchange:
    """One request, and the methods to answer it.

    Attributes:
        gone: set when the client has closed the connection before the answer's end.
        closed: set when the connection is closed at any time.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    fake: FakeWattfare
    writer: asyncio.StreamWriter
    gone: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    complete: bool = False

    @property
    def path(self) -> str:
        """The path below ``/api/v1``, without the query."""
        return urlsplit(self.target).path.removeprefix("/api/v1")

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, strict_parsing=True)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def user(self) -> str | None:
        """The user who pays, decoded."""
        value = self.headers.get("x-wattfare-user")
        return None if value is None else unquote(value, errors="strict")

    def answer(
        self,
        body: bytes | str | dict[str, Any] = b"",
        *,
        status: int = 200,
        content_type: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends a whole answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        self.head(status, {"content-length": str(len(body)), **(headers or {})}, content_type)
        self.complete = True
        self.send(body)

    def error(self, code: str, status: int, message: str = "No.", **headers: str) -> None:
        """Sends an error of the protocol."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer({"error": {"code": code, "message": message}}, status=status, headers=headers)

    def head(
        self, status: int, headers: dict[str, str], content_type: str | None = "application/json"
    ) -> None:
        """Sends only the head of an answer."""
        if content_type is not None:
            headers = {"content-type": content_type, **headers}
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode())

    def start_stream(
        self, content_type: str = "text/event-stream", headers: dict[str, str] | None = None
    ) -> None:
        """Sends the head of a stream."""
        self.head(200, {"transfer-encoding": "chunked", **(headers or {})}, content_type)

    def chunk(self, data: bytes) -> None:
        """Sends a part of a stream."""
        if data:
            self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        """Ends a stream."""
        self.complete = True
        self.send(b"0\r\n\r\n")

    def stream(self, *chunks: bytes, **head: Any) -> None:
        """Sends a whole stream."""
        self.start_stream(**head)
        for chunk in chunks:
            self.chunk(chunk)
        self.end()

    def send(self, data: bytes) -> None:
        """Sends raw bytes."""
        self._soon(self.writer.write, data)

    def reset(self) -> None:
        """Breaks the connection with RST."""

        def reset() -> None:
            # Earlier bytes must have arrived: the RST would overtake them.
            connection = self.writer.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()

        self.complete = True
        self._soon(reset)

    def hang_up(self) -> None:
        """Closes the connection with FIN at any point of the answer."""
        self.complete = True
        self._soon(self.writer.close)

    def wait_gone(self, patience: float = 5) -> None:
        """Waits until the client has closed the connection."""
        assert self.gone.wait(patience), "the call to the service stayed open"

    def _soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.fake.loop.call_soon_threadsafe(function, *args)


Script = Callable[[Exchange], None]


def event(data: dict[str, Any] | str) -> bytes:
    """An event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def word(text: str, **fields: Any) -> bytes:
    """An event with a chunk of a completion."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": choices, **fields})


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": 0.000011}
DONE = b"data: [DONE]\n\n"
COMPLETION: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "model": "openai/gpt-4o",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
SESSION = {"token": "a.b.c", "expiresAt": 1_800_000_000}
STATUS = {
    "connected": True,
    "limits": {"monthlyUsd": 20},
    "usage": {"monthlyUsd": 0.5},
    "remainingUsd": 19.5,
}
MODELS = {
    "data": [
        {"id": "openai/gpt-4o", "pricing": {"prompt": "0.0000025"}},
        {"id": "openai/o1"},
        {"id": "anthropic/claude-sonnet-4", "name": "Claude"},
    ]
}


def good(exchange: Exchange) -> None:
    """Answers as a correct service does."""
    match exchange.path:
        case "/sessions":
            exchange.answer(SESSION)
        case "/status":
            exchange.answer(STATUS)
        case "/models":
            exchange.answer(MODELS)
        case "/connections":
            exchange.head(204, {}, None)
            exchange.complete = True
        case _ if exchange.json.get("stream"):
            told = [event({"choices": [], "usage": USAGE})]
            if not (exchange.json.get("stream_options") or {}).get("include_usage"):
                told = []
            exchange.stream(word("one "), word("two"), *told, DONE)
        case _:
            exchange.answer(COMPLETION)


def held(_exchange: Exchange) -> None:
    """Sends nothing: the test answers."""


def held_stream(exchange: Exchange) -> None:
    """Sends the head of a stream. The test sends the rest."""
    exchange.start_stream()


async def _words_for_ever(exchange: Exchange) -> None:
    """The answer to a victim (see :mod:`support.victim`), whatever the script is."""
    exchange.start_stream()
    while not exchange.writer.is_closing():
        exchange.chunk(word("w "))
        await asyncio.sleep(0.05)


class FakeWattfare:
    """The service.

    Attributes:
        script: answers the next requests.
        exchanges: the received requests, in order.
        failures: the faults of the requests; the fixture checks them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.url = ""
        self.script: Script = good
        self.exchanges: list[Exchange] = []
        self.failures: list[BaseException] = []
        self._arrived: queue.Queue[Exchange] = queue.Queue()
        self._writers: set[asyncio.StreamWriter] = set()

    def next(self, path: str = "/chat/completions") -> Exchange:
        """The next request, as soon as it has arrived."""
        exchange = self._arrived.get(timeout=PATIENCE)
        assert exchange.path == path
        return exchange

    def forget(self) -> None:
        """Resets everything for the next test."""
        self.script = good
        self.failures.clear()
        self.forget_exchanges()

    def forget_exchanges(self) -> None:
        """Forgets everything except the failures."""
        self.exchanges.clear()
        while not self._arrived.empty():
            self._arrived.get()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exchange: Exchange | None = None
        try:
            while (exchange := await self._read(reader, writer)) is not None:
                latest = exchange
                if VICTIM in latest.body[:2000]:
                    await _words_for_ever(latest)
                    break
                self.exchanges.append(latest)
                try:
                    self._check(latest)
                    self.script(latest)
                except BaseException as error:
                    self.failures.append(error)
                    latest.answer(status=500)
                self._arrived.put(latest)
                # The client's next request shows whether it has waited for the end.
                more = await _peek(reader)
                if not latest.complete:
                    if more:
                        self.failures.append(WrongRequestError("it did not wait for its answer"))
                    latest.gone.set()
                if not more:
                    latest.closed.set()
                    break
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._writers.discard(writer)
            writer.close()

    def close_all(self) -> None:
        """Closes all connections and waits until they are closed."""
        asyncio.run_coroutine_threadsafe(self.abort_all(), self.loop).result(PATIENCE)

    async def abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)  # closes the sockets

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = head[:-4].split("\r\n")
        method, target, version = first.split(" ")
        _need(version == "HTTP/1.1", version)
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            _need(bool(colon), line)
            _need(name.lower() not in headers, f"{name} twice")
            headers[name.lower()] = value
        try:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Exchange(method, target, headers, body, self, writer)

    def _check(self, request: Exchange) -> None:
        headers = request.headers
        _need(request.target.startswith("/api/v1/"), request.target)
        path = request.path
        _need(path in _METHODS, path)
        _need(request.method == _METHODS[path], request.method)
        credential = SESSION["token"] if path == "/connections" else SECRET_KEY
        _need(headers.get("authorization") == f"Bearer {credential}", "authorization")
        _need(headers.get("accept-encoding") == "identity", "accept-encoding")
        _need(headers["host"] == self.url.removeprefix("http://"), headers["host"])
        # httpx states the default; no other hop-by-hop header may be sent.
        _need(headers.get("connection", "keep-alive") == "keep-alive", "connection")
        unknown = set(headers) - _KNOWN_HEADERS[path] - _ON_EVERY_REQUEST - {"connection"}
        _need(not unknown, f"unexpected headers: {unknown}")
        for name, value in headers.items():
            _need(value.isascii() and value.isprintable(), f"{name}: {value!r}")
        if path == "/sessions":
            _need(headers["content-type"] == "application/json", headers["content-type"])
            sent = request.json
            _need(set(sent) <= {"appUserId", "requestLimit", "accountLabel"}, str(sent))
            _need(isinstance(sent["appUserId"], str) and sent["appUserId"] != "", str(sent))
            _need(set(sent.get("requestLimit", {})) <= {"monthlyUsd"}, str(sent))
        elif path == "/status":
            _need(list(request.query) == ["appUserId"], request.target)
            _need(len(request.query["appUserId"]) == 1, request.target)
        elif path == "/chat/completions":
            user, grant = headers.get("x-wattfare-user"), headers.get("x-wattfare-grant")
            _need((user is None) != (grant is None), "exactly one pays")
            if user is not None:
                _need(_USER.fullmatch(user) is not None, f"user header {user!r}")
                unquote(user, errors="strict")
            media_type = headers["content-type"].partition(";")[0].strip().lower()
            _need(media_type == "application/json", media_type)
            _need(isinstance(request.json, dict), "the body is an object")
            _need(re.fullmatch(r"[!-~]{1,128}", headers["x-request-id"]) is not None, "request id")
        if request.method == "GET":
            _need(not request.body, "a GET with a body")


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise WrongRequestError(what)


async def _peek(reader: asyncio.StreamReader) -> bool:
    """Waits for the next byte without reading it. False if there is none."""
    try:
        first = await reader.read(1)
    except ConnectionError:
        return False
    if first:
        reader._buffer[:0] = first  # type: ignore[attr-defined]  # there is no public way
    return bool(first)


@contextmanager
def run_fake_wattfare() -> Iterator[FakeWattfare]:
    """Runs the service on a free port."""
    loop = asyncio.new_event_loop()
    fake = FakeWattfare(loop)

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(fake.talk, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def stop() -> None:
        server.close()
        await fake.abort_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
