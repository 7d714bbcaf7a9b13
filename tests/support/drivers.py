"""Sends the same request through the ASGI and the WSGI middleware, and shows the result."""

from __future__ import annotations

import asyncio
import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from support.patience import PATIENCE
from wattfare_mw import WattfareMiddleware

Fields = dict[str, str] | list[tuple[str, str]]

TOKEN = "/api/wattfare-token"
INFERENCE = "/api/wattfare/chat/completions"
STATUS = "/api/wattfare/status"
MODELS = "/api/wattfare/models"
JSON = {"content-type": "application/json"}


@dataclass
class Answered:
    """A whole answer."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        names = [name for name, _ in self.fields]
        assert len(names) == len(set(names)), names
        return dict(self.fields)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code. Checks that the error has the form of the protocol."""
        assert self.status >= 400
        assert self.headers["content-type"] == "application/json"
        assert self.headers["cache-control"] == "no-store"
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"code", "message"}
        assert self.json["error"]["message"]
        return self.json["error"]["code"]


class LoopThread:
    """An event loop that runs permanently, as a server's does."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Starts a coroutine on the loop and returns its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.submit(coroutine).result(PATIENCE)

    def close(self) -> None:
        async def settle() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self.loop.shutdown_asyncgens()
            await self.loop.shutdown_default_executor()

        self.run(settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


def scope_of(method: str, path: str, headers: Fields, query: str = "", **more: Any) -> Any:
    """The ASGI scope of a request."""
    fields = list(headers.items()) if isinstance(headers, dict) else headers
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "query_string": query.encode("latin-1"),
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in fields],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **more,
    }


def environ_of(
    method: str,
    path: str,
    headers: Fields,
    body: bytes | None = b"",
    query: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The WSGI environ of the same request. A body of None has an unknown length."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body or b""),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items() if isinstance(headers, dict) else headers:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        # Servers join repeated headers this way.
        glue = "; " if key == "HTTP_COOKIE" else ", "
        environ[key] = f"{environ[key]}{glue}{value}" if key in environ else value
    return {**environ, **more}


@dataclass
class Live:
    """An answer in progress, as its client sees it.

    Attributes:
        chunks: the unread chunks; None is the end, an exception is a failure.
    """

    close: Callable[[], None]
    chunks: queue.Queue[bytes | BaseException | None] = field(default_factory=queue.Queue)
    started: threading.Event = field(default_factory=threading.Event)
    status: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)

    def wait_started(self) -> None:
        assert self.started.wait(PATIENCE), "no answer arrived"

    def next(self) -> bytes | None:
        """The next chunk as soon as it arrives, or None at the end."""
        chunk = self.chunks.get(timeout=PATIENCE)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def rest(self) -> bytes:
        """Everything from here to the end."""
        return b"".join(iter(self.next, None))

    def answered(self) -> Answered:
        body = self.rest()
        return Answered(self.status, self.fields, body)


class ASGIDriver:
    """Calls a middleware as an ASGI server does."""

    interface = "asgi"

    def __init__(self, **options: Any) -> None:
        self.loop = LoopThread()
        self.app = asgi_app
        self.middleware: Any = WattfareMiddleware(options.pop("app", asgi_app), **options)

    def open(
        self,
        method: str,
        path: str,
        headers: Fields | None = None,
        body: bytes = b"",
        query: str = "",
        **more: Any,
    ) -> Live:
        """Starts a request. Like a server, it declares the length."""
        fields = with_length(headers, body)
        scope = scope_of(method, path, fields, query, **more)
        messages: asyncio.Queue[Any] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

        def leave() -> None:
            self.loop.loop.call_soon_threadsafe(messages.put_nowait, {"type": "http.disconnect"})

        live = Live(leave)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert not live.started.is_set()
                live.status = message["status"]
                live.fields = [
                    (k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"]
                ]
                live.started.set()
            else:
                assert message["type"] == "http.response.body"
                assert live.started.is_set()
                if message.get("body"):
                    live.chunks.put(message["body"])

        async def run() -> None:
            try:
                await self.middleware(scope, messages.get, send)
                # The server continues in this task: none of our cancellations may be pending in it.
                task = asyncio.current_task()
                assert task is not None
                assert not task.cancelling()
                await asyncio.sleep(0)
            except BaseException as error:
                live.chunks.put(error)
                raise
            finally:
                live.chunks.put(None)

        live.task = self.loop.submit(run())  # type: ignore[attr-defined]
        return live

    def request(self, *args: Any, **more: Any) -> Answered:
        """Makes a request and returns its whole answer."""
        return self.open(*args, **more).answered()

    def close(self) -> None:
        self.loop.run(self.middleware.aclose())
        self.loop.close()


class WSGIDriver:
    """Calls a middleware as a WSGI server does, in a thread for each request."""

    interface = "wsgi"

    def __init__(self, **options: Any) -> None:
        self.middleware: Any = WattfareMiddleware(options.pop("app", wsgi_app), **options)
        self.wrapped = self.middleware

    def open(
        self,
        method: str,
        path: str,
        headers: Fields | None = None,
        body: bytes = b"",
        query: str = "",
        **more: Any,
    ) -> Live:
        """Starts a request. Like a server, it declares the length."""
        environ = environ_of(method, path, with_length(headers, body), body, query, **more)
        gone = threading.Event()
        live = Live(gone.set)

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Any:
            assert not live.started.is_set()
            live.status = int(status.split(" ")[0])
            live.fields = list(headers)
            live.started.set()
            return live.chunks.put

        def run() -> None:
            try:
                result = self.wrapped(environ, start_response)
                try:
                    for chunk in result:
                        # A server notices a disconnect when it writes.
                        if gone.is_set():
                            break
                        if chunk:
                            live.chunks.put(chunk)
                finally:
                    if hasattr(result, "close"):
                        result.close()
            except BaseException as error:
                live.chunks.put(error)
            finally:
                live.chunks.put(None)

        threading.Thread(target=run, daemon=True).start()
        return live

    def request(self, *args: Any, **more: Any) -> Answered:
        """Makes a request and returns its whole answer."""
        return self.open(*args, **more).answered()

    def close(self) -> None:
        self.middleware.close()


Driver = ASGIDriver | WSGIDriver
#: A function that makes a middleware with these options, and its driver.
Drive = Callable[..., Driver]
KINDS: dict[str, Any] = {"asgi": ASGIDriver, "wsgi": WSGIDriver}


def with_length(headers: Fields | None, body: bytes) -> list[tuple[str, str]]:
    fields = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    if body and not any(name.lower() == "content-length" for name, _ in fields):
        fields.append(("content-length", str(len(body))))
    return fields


def body_of(model: Any = "openai/gpt-4o", **fields: Any) -> bytes:
    """An inference body."""
    return json.dumps({"model": model, "messages": [], **fields}).encode()


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """The inner app. It reports its path."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            await send({"type": f"lifespan.{phase}.complete"})
        return
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the app: " + scope["path"].encode()})


def wsgi_app(environ: Any, start_response: Any) -> Iterator[bytes]:
    """The inner app. It reports its path."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return iter([b"the app: " + environ["PATH_INFO"].encode("latin-1")])
