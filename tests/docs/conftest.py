"""Serves each example: a real service behind it, a real server around it, and real HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web
from support.http_client import http_client
from support.patience import PATIENCE
from support.servers import aiohttp_server, gunicorn_server
from support.service import App, Service, bearer
from werkzeug.serving import make_server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def app(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """A test app whose keys are in this process's environment."""
    with service.app() as app:
        monkeypatch.setenv("WATTFARE_SECRET_KEY", app.keys.secret_key)
        monkeypatch.setenv("WATTFARE_BASE_URL", service.url)
        yield app


class Example:
    """A served example, and a browser for it."""

    def __init__(self, module: Any, url: str, app: App, http: httpx.Client | None = None) -> None:
        self.module = module
        self.url = url
        self.app = app
        self.http = http or http_client(base_url=url)

    def sign_in(self, name: str = "ada") -> None:
        """Signs in through the example's own route."""
        answer = self.http.post(f"/sign-in/{name}")
        assert answer.status_code < 400, answer.text

    def connect(self, token_path: str = "/api/wattfare-token", **cap: Any) -> dict[str, Any]:
        """Gets a token from the example and connects with it."""
        answer = self.http.post(token_path)
        assert answer.status_code == 200, answer.text
        answer = self.app.http.post(
            "/connections", json=cap, headers=bearer(answer.json()["token"])
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(self, text: str = "one two three", **fields: Any) -> httpx.Response:
        """Makes an inference call through the example's middleware."""
        return self.http.post(
            "/api/wattfare/chat/completions",
            json={
                "model": "wattfare/echo",
                "messages": [{"role": "user", "content": text}],
                **fields,
            },
        )


@pytest.fixture
def serve(app: App) -> Iterator[Any]:
    """``serve("flask_app")`` serves an example."""
    with ExitStack() as running:

        def start(name: str) -> Example:
            module = load(name)
            target = module.create_app() if hasattr(module, "create_app") else module.app
            url = running.enter_context(_served(target))
            example = Example(module, url, app)
            running.callback(example.http.close)
            return example

        yield start


@contextmanager
def run_django(name: str, folder: Path) -> Iterator[str]:
    """Runs a one-file Django project, with its database in this folder."""
    root = EXAMPLES.parent
    path = os.pathsep.join(map(str, (EXAMPLES, root, root / "adapters")))
    subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", "migrate", "--verbosity", "0"],
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        timeout=PATIENCE,
    )
    env = {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": name}
    app = "django.core.wsgi:get_wsgi_application()"
    options = ("--chdir", str(folder), "--worker-class", "gthread", "--threads", "4")
    with gunicorn_server(app, *options, env=env) as (host, port):
        yield f"http://{host}:{port}"


def load(name: str) -> ModuleType:
    """Loads an example's module again."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # frameworks look up the names of annotations here
    spec.loader.exec_module(module)
    return module


def _served(target: Any) -> Any:
    from wattfare_mw.middleware.interface import interface_of

    if isinstance(target, web.Application):
        return _served_aiohttp(target)
    return _served_wsgi(target) if interface_of(target) == "wsgi" else _served_asgi(target)


@contextmanager
def _served_aiohttp(target: web.Application) -> Iterator[str]:
    with aiohttp_server(target) as (host, port):
        yield f"http://{host}:{port}"


@contextmanager
def _served_wsgi(target: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, target, threaded=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()
        # WSGI has no shutdown event; a process closes these at exit.
        middleware = getattr(target, "extensions", {}).get("wattfare", target)
        if hasattr(middleware, "close"):
            middleware.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def _served_asgi(target: Any) -> Iterator[str]:
    config = uvicorn.Config(target, port=0, log_level="warning", ws="none", lifespan="auto")
    server = _Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        assert server.listening.wait(PATIENCE)
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
