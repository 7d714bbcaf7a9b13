"""Calls an app without a server, one request at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattfare_mw import WattfareMiddleware

from ..apps.users import signed_in_user
from ..peers import clients
from .processes import BenchError


def _scope() -> dict[str, Any]:
    """The scope that uvicorn creates for a small GET."""
    headers = [
        (b"host", b"app.example.com"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (b"accept", b"text/html,application/xhtml+xml"),
        (b"accept-language", b"en-US,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"cookie", b"session=s3cr3t"),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/articles/42",
        "raw_path": b"/articles/42",
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


def _environ() -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/articles/42",
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "app.example.com",
        "HTTP_COOKIE": "session=s3cr3t",
        "REMOTE_ADDR": "127.0.0.1",
    }


async def _nothing(*_args: Any) -> None:
    pass


def _start_response(*_args: Any) -> None:
    pass


def asgi_call(app: Any) -> Callable[[], None]:
    """A function that sends one request to the app. The app must not wait, so no event loop is
    needed or measured."""
    scope = _scope()

    def call() -> None:
        try:
            app(scope, _nothing, _nothing).send(None)
        except StopIteration:
            return
        raise BenchError(
            "the app waits for something, so it cannot be measured without an event loop"
        )

    return call


def wsgi_call(app: Any) -> Callable[[], None]:
    """:func:`asgi_call`, for WSGI."""
    environ = _environ()

    def call() -> None:
        for _ in app(environ, _start_response):
            pass

    return call


def ours_around(app: Any) -> Any:
    return WattfareMiddleware(app, resolve_user=signed_in_user, secret_key=clients.SECRET_KEY)
