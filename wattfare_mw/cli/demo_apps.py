"""The two small apps of ``wattfare demo``. Each adds one line to an existing app. Run one with
``python -m wattfare_mw.cli.demo_apps flask`` (or ``starlette``)."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import Any


def flask_app() -> Any:
    """A Flask app. It trusts a cookie with the user's name, which only a demo may do."""
    from flask import Flask
    from wattfare_flask import WattfareMiddleware

    app = Flask("demo")

    @app.get("/")
    def home() -> str:
        return "The Flask app without Wattfare.\n"

    WattfareMiddleware(app, resolve_user=lambda request: request.cookies.get("user"))
    return app


def starlette_app() -> Any:
    """A Starlette app with the same sign-in."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from wattfare_starlette import WattfareMiddleware

    async def home(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("The Starlette app without Wattfare.\n")

    app = Starlette(routes=[Route("/", home)])
    app.add_middleware(WattfareMiddleware, resolve_user=lambda request: request.cookies.get("user"))
    return app


def main(kind: str) -> None:
    """Serve one of the apps on a free port and print its URL."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}", flush=True)
        if kind == "flask":
            from werkzeug.serving import make_server

            make_server(
                "127.0.0.1", port, flask_app(), threaded=True, fd=sock.fileno()
            ).serve_forever()
        else:
            import uvicorn

            uvicorn.Server(uvicorn.Config(starlette_app(), log_level="warning")).run([sock])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1])
