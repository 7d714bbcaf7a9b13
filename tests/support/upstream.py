"""A fake OpenAI-compatible upstream on a real socket, which follows a test's script.

It writes HTTP by hand, so it can also break the protocol: disconnect, hang, lie.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from support.patience import PATIENCE

#: Marks the body of a call of :mod:`support.victim`.
VICTIM = b'"victim'

#: Prices as OpenRouter lists them, in USD for a token.
MODELS: list[dict[str, Any]] = [
    {"id": "fake/model", "pricing": {"prompt": "0.000001", "completion": "0.000002"}},
    {"id": "fake/tiny", "pricing": {"prompt": "0.0000000001", "completion": "0.0000000003"}},
    {
        "id": "fake/deep-research",
        "pricing": {"prompt": "0.000001", "completion": "0.000002", "web_search": "0.005"},
    },
    {"id": "fake/router", "pricing": {"prompt": "-1", "completion": "-1"}},
    {"id": "fake/unpriced"},
]


class GoneError(Exception):
    """The client has closed the connection."""


@dataclass
class Exchange:
    """One request, and the connection for its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    upstream: Upstream

    @property
    def json(self) -> Any:
        """The request's body, decoded."""
        return json.loads(self.body)

    def send(self, data: bytes) -> None:
        """Sends raw bytes."""
        try:
            self.connection.sendall(data)
        except OSError:
            raise GoneError from None

    def answer(
        self,
        body: bytes | str | dict[str, Any],
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends a whole answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        more = {"content-length": str(len(body)), **(headers or {})}
        self._head(status, content_type, more)
        self.send(body)

    def start_stream(
        self,
        content_type: str = "text/event-stream",
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends the head of a chunked event stream."""
        self._head(200, content_type, {"transfer-encoding": "chunked", **(headers or {})})

    def event(self, data: dict[str, Any] | str) -> None:
        """Sends an event in its own HTTP chunk."""
        text = data if isinstance(data, str) else json.dumps(data)
        self.chunk(f"data: {text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        """Sends an HTTP chunk."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def word(self, word: str) -> None:
        """Sends a chunk of a completion."""
        self.event(chunk_of({"choices": [{"index": 0, "delta": {"content": word}}]}))

    def usage(self, usage: Any) -> None:
        """Sends the extra chunk with the usage."""
        self.event(chunk_of({"choices": [], "usage": usage}))

    def done(self) -> None:
        """Ends a complete stream."""
        self.event("[DONE]")
        self.send(b"0\r\n\r\n")

    def hang(self) -> None:
        """Sends nothing until the client disconnects, and counts that."""
        with suppress(OSError):
            while self.connection.recv(65536):
                pass
        raise GoneError

    def reset(self) -> None:
        """Breaks the connection within the answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        raise GoneError

    def _head(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{fields}\r\n".encode())


Script = Callable[[Exchange], None]


def no_record(exchange: Exchange) -> None:
    """Answers that there is no such generation, or no record of it yet."""
    exchange.answer({"error": {"code": 404, "message": "Generation not found"}}, status=404)


def chunk_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A chunk of a completion with these fields."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake/model",
        **fields,
    }


def completion_of(text: str, **fields: Any) -> dict[str, Any]:
    """A whole completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake/model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **fields,
    }


def good(exchange: Exchange) -> None:
    """Answers as a correct upstream does: three words, their usage and their cost."""
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": 0.000011}
    if not exchange.json.get("stream"):
        exchange.answer(completion_of("one two three", usage=usage))
        return
    exchange.start_stream()
    for word in ("one ", "two ", "three"):
        exchange.word(word)
    if (exchange.json.get("stream_options") or {}).get("include_usage"):
        exchange.usage(usage)
    exchange.done()


def broken(exchange: Exchange) -> None:
    """Breaks a stream after its first word."""
    exchange.start_stream()
    exchange.word("one ")
    exchange.reset()


def reporting(usage: Any, words: tuple[str, ...] = ("one",)) -> Script:
    """A script that answers these words with this usage; None: with no usage."""

    def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            more = {} if usage is None else {"usage": usage}
            exchange.answer(completion_of("".join(words), **more))
            return
        exchange.start_stream()
        for word in words:
            exchange.word(word)
        if usage is not None:
            exchange.usage(usage)
        exchange.done()

    return script


@dataclass
class Upstream:
    """The fake upstream.

    Attributes:
        script: answers a call to ``/chat/completions``; set it before the call.
        models: what ``/models`` lists.
        models_script: answers a call to ``/models`` instead.
        record_script: answers a request for a generation's record.
        first: sees each request first, and returns True if it has answered it.
        calls: the received calls.
        questions: the received requests for records.
        gone: released once for each call whose client disconnected before its end.
    """

    url: str = ""
    script: Script = good
    models: Any = field(default_factory=lambda: {"data": MODELS})
    models_script: Script | None = None
    record_script: Script = no_record
    first: Callable[[Exchange], bool] | None = None
    calls: list[Exchange] = field(default_factory=list)
    questions: list[Exchange] = field(default_factory=list)
    gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    failures: list[BaseException] = field(default_factory=list)

    def reset(self) -> None:
        """Removes the settings and results of an earlier test."""
        self.script = good
        self.models = {"data": MODELS}
        self.models_script = None
        self.record_script = no_record
        self.first = None
        self.calls.clear()
        self.questions.clear()
        self.gone = threading.Semaphore(0)

    def wait_gone(self) -> None:
        """Waits until the client of a call has disconnected."""
        assert self.gone.acquire(timeout=PATIENCE), "the connection to the upstream stayed open"


@contextmanager
def run_upstream(script: Script = good) -> Iterator[Upstream]:
    """Runs the fake on a free port. ``.url`` is its base URL, in OpenRouter's format."""
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1", script)
    open_connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_connections.append(connection)
            thread = threading.Thread(target=_talk, args=(upstream, connection), daemon=True)
            threads.append(thread)
            thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield upstream
    finally:
        # Closing a listener does not wake up a thread that waits on it. Shutting it down does.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(PATIENCE)
        for connection in open_connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)
    assert not upstream.failures, upstream.failures


def _talk(upstream: Upstream, connection: socket.socket) -> None:
    reader = connection.makefile("rb")
    try:
        while (exchange := _read(reader, connection, upstream)) is not None:
            if upstream.first is not None and upstream.first(exchange):
                continue
            if exchange.path.endswith("/models"):
                answer = upstream.models_script
                answer(exchange) if answer else exchange.answer(upstream.models)
            elif "/generation?" in exchange.path:
                upstream.questions.append(exchange)
                upstream.record_script(exchange)
            else:
                if VICTIM in exchange.body[:2000]:
                    _words_for_ever(exchange)
                    break
                upstream.calls.append(exchange)
                upstream.script(exchange)
    except GoneError:
        upstream.gone.release()
    except OSError:
        pass
    except BaseException as error:  # an error in a script fails the test
        upstream.failures.append(error)
    finally:
        reader.close()
        connection.close()


def _words_for_ever(exchange: Exchange) -> None:
    """The answer to a victim (see :mod:`support.victim`), whatever the script is."""
    with suppress(GoneError):
        exchange.start_stream()
        while True:
            exchange.word("w ")
            time.sleep(0.05)


def _read(reader: Any, connection: socket.socket, upstream: Upstream) -> Exchange | None:
    line = reader.readline().decode("latin-1")
    if not line:
        return None
    method, path, _ = line.split(" ", 2)
    headers: dict[str, str] = {}
    while (field_line := reader.readline().decode("latin-1").strip()) != "":
        name, _, value = field_line.partition(":")
        headers[name.lower()] = value.strip()
    body = reader.read(int(headers.get("content-length", 0)))
    return Exchange(method, path, headers, body, connection, upstream)
