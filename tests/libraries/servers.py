"""An app whose middleware some libraries call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import flask
from starlette.applications import Starlette
from support.servers import uvicorn_server, werkzeug_server
from support.service import App
from wattfare_flask import WattfareMiddleware
from wattfare_starlette import add_wattfare


class Servers:
    """The app of each framework, on a real server that starts at its first use."""

    def __init__(self, app: App, on_usage: Callable[..., None]) -> None:
        self._running = ExitStack()
        self._urls: dict[str, str] = {}
        self._options: dict[str, Any] = {
            "resolve_user": lambda request: request.headers.get("x-user"),
            "secret_key": app.keys.secret_key,
            "base_url": app.service.url,
            "on_usage": on_usage,
        }

    def url(self, framework: str) -> str:
        """The address of this framework's app."""
        if framework not in self._urls:
            run = self._starlette if framework == "starlette" else self._flask
            host, port = self._running.enter_context(run())
            self._urls[framework] = f"http://{host}:{port}"
        return self._urls[framework]

    def close(self) -> None:
        """Stops the servers."""
        self._running.close()

    def _starlette(self) -> Any:
        app = Starlette()
        add_wattfare(app, **self._options)
        return uvicorn_server(app)

    def _flask(self) -> Any:
        app = flask.Flask(__name__)
        self._running.callback(WattfareMiddleware(app, **self._options).close)
        return werkzeug_server(app)
