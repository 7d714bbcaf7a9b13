"""The two small apps of ``wattfare demo``, each on a server of its own: what an app has to add
is one line. Run as ``python -m wattfare_mw.cli.demo_apps flask`` (or ``starlette``)."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import Any


def flask_app() -> Any:
    """A Flask app; whoever the cookie names is signed in, which only a demo may believe."""
    from flask import Flask
    from wattfare_flask import WattfareMiddleware

    app = Flask("demo")

    @app.get("/")
    def home() -> str:
        return "A Flask app, as it was before.\n"

    WattfareMiddleware(app, resolve_user=lambda request: request.cookies.get("user"))
    return app


def starlette_app() -> Any:
    """A Starlette app, likewise."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from wattfare_starlette import WattfareMiddleware

    async def home(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("A Starlette app, as it was before.\n")

    app = Starlette(routes=[Route("/", home)])
    app.add_middleware(WattfareMiddleware, resolve_user=lambda request: request.cookies.get("user"))
    return app


def main(kind: str) -> None:
    """Serve one of them on a free port, and say where."""
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
