"""Real servers around an app. Each socket listens before its server starts: early clients wait in
its queue, so no test must poll for the server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio
import uvicorn
from aiohttp import web
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as serve_hypercorn_on_trio
from werkzeug.serving import make_server

from support.patience import PATIENCE

Address = Any
"""The address of a socket: a host and a port, or a path."""


@contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener


@contextmanager
def uvicorn_server(app: Any, **options: Any) -> Iterator[Address]:
    """uvicorn in a thread."""
    config = uvicorn.Config(
        app, log_config=None, **{"lifespan": "on", "timeout_graceful_shutdown": 5, **options}
    )
    server = uvicorn.Server(config)
    with _listening() as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def hypercorn_server(app: Any) -> Iterator[Address]:
    """hypercorn in a thread."""
    config = HypercornConfig()
    config.errorlog = None
    config.graceful_timeout = 1
    loops: list[Any] = []

    async def main(ready: threading.Event) -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        ready.set()
        await serve_hypercorn(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]

    with _listening() as listener:
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        ready = threading.Event()
        thread = threading.Thread(target=asyncio.run, args=(main(ready),), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)
        try:
            yield listener.getsockname()
        finally:
            loop, stop = loops[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def hypercorn_trio_server(app: Any) -> Iterator[Address]:
    """hypercorn's trio worker in a thread."""
    config = HypercornConfig()
    config.errorlog = None
    config.graceful_timeout = 1
    running: list[Any] = []

    async def main(ready: threading.Event) -> None:
        stop = trio.Event()
        running.append((trio.lowlevel.current_trio_token(), stop))
        ready.set()
        await serve_hypercorn_on_trio(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]

    with _listening() as listener:
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        ready = threading.Event()
        thread = threading.Thread(target=trio.run, args=(main, ready), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)
        try:
            yield listener.getsockname()
        finally:
            token, stop = running[0]
            token.run_sync_soon(stop.set)
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def aiohttp_server(app: web.Application) -> Iterator[Address]:
    """aiohttp.web in a thread."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5)
    with _listening() as listener:
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def start() -> None:
            await runner.setup()
            await web.SockSite(runner, listener).start()

        asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
        try:
            yield listener.getsockname()
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)
            loop.close()


@contextmanager
def werkzeug_server(app: Any) -> Iterator[Address]:
    """werkzeug's server, a thread for each request."""
    with _listening() as listener:
        server = make_server("127.0.0.1", 0, app, threaded=True, fd=listener.fileno())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.shutdown()
            thread.join(PATIENCE)
            server.server_close()


@contextmanager
def gunicorn_server(app: str, *options: str, env: dict[str, str]) -> Iterator[Address]:
    """gunicorn, as processes."""
    with (
        _listening() as listener,
        _process(
            *("-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--workers", "1"),
            *("--graceful-timeout", "1", *options, app),
            env=env,
            pass_fds=[listener.fileno()],
        ),
    ):
        yield listener.getsockname()


@contextmanager
def uvicorn_process(app: str, *, env: dict[str, str]) -> Iterator[tuple[Address, int]]:
    """uvicorn as a process. Yields its address and process id."""
    with (
        _listening() as listener,
        _process(
            *("-m", "uvicorn", "--fd", str(listener.fileno()), "--log-level", "warning", app),
            env=env,
            pass_fds=[listener.fileno()],
        ) as process,
    ):
        yield listener.getsockname(), process.pid


@contextmanager
def granian_server(app: str, directory: Path, *, env: dict[str, str]) -> Iterator[Address]:
    """granian as processes, on a Unix socket."""
    path = directory / "s"
    program = ("-m", "granian", "--interface", "asgi", "--uds", str(path), "--no-ws", app)
    with _process(*program, env=env) as process:
        # It reports that it listens slightly too early.
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                Visitor(str(path)).leave()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
        yield str(path)


@contextmanager
def _process(*arguments: str, env: dict[str, str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "adapters", root / "tests")))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
        **more,
    )
    assert process.stdout is not None
    log: list[str] = []
    # Read all the time, so that a full pipe never blocks it.
    reader = threading.Thread(target=log.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            reader.join(PATIENCE)
            process.stdout.close()


class Visitor:
    """A client that writes HTTP by hand, so it can disconnect at any moment."""

    def __init__(self, address: Address) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._seen = b""

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        """Sends a request."""
        headers = {"host": "testserver", "content-length": str(len(body)), **headers}
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode() + body)

    def send(self, data: bytes) -> None:
        """Sends raw bytes."""
        self._socket.sendall(data)

    def forget(self) -> None:
        """Discards what has arrived so far."""
        self._seen = b""

    def wait_for(self, part: bytes) -> bytes:
        """Everything that has arrived, once it contains this."""
        while part not in self._seen:
            more = self._socket.recv(65536)
            assert more, self._seen
            self._seen += more
        return self._seen

    def leave(self, *, reset: bool = False) -> None:
        """Closes the connection."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        with suppress(OSError):
            self._socket.close()

    def rest(self) -> bytes:
        """Everything until the end of the connection."""
        while more := self._socket.recv(65536):
            self._seen += more
        self._socket.close()
        return self._seen
