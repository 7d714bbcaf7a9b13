"""The chat app of ``wattfare demo --web``, in three frameworks. Each version adds one
middleware."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import msgspec

from ...transport import Secret

#: The path of the middleware's browser module.
CLIENT_PATH = "/api/wattfare/wattfare.js"
#: The monthly cap that the app asks for, in USD. It pays for a few long answers of the built-in
#: model.
REQUEST_LIMIT = Decimal("0.001")
MODEL = "wattfare/echo-slow"
#: The cookie with the random id of a visitor.
COOKIE = "visitor"
FRAMEWORKS = ("flask", "starlette", "litestar")

_FILES = Path(__file__).parent / "files"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
#: The other files of the page.
ASSETS = {f"/{path.name}": path for path in sorted(_FILES.iterdir()) if path.suffix in _TYPES}


class Chat(msgspec.Struct, frozen=True):
    """The settings of the app.

    Attributes:
        publishable_key: the app's publishable key, for the browser.
        secret_key: the app's secret key.
        service: the URL of the service. Its host is ``localhost``, because passkeys need a name.
        request_limit: the monthly cap that the app asks for, in USD.
    """

    publishable_key: str
    secret_key: Secret
    service: str
    request_limit: Decimal = REQUEST_LIMIT

    def options(self) -> dict[str, Any]:
        """The options of the middleware, except ``resolve_user``."""
        return {
            "secret_key": self.secret_key,
            "base_url": self.service,
            "client_path": CLIENT_PATH,
            "request_limit": self.request_limit,
            "account_label": _label,
            "models": [MODEL],
        }

    def page(self) -> str:
        """The page with the chat."""
        values = {
            "client": CLIENT_PATH,
            "key": self.publishable_key,
            "service": self.service,
            "model": MODEL,
            "title": "Wattfare demo",
        }
        escaped = {name: html.escape(value) for name, value in values.items()}
        return Template((_FILES / "chat.html").read_text()).substitute(escaped)

    def headers(self) -> dict[str, str]:
        """The headers of the page, with a strict policy: scripts load only from this app's own
        files."""
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
            f"connect-src 'self' {self.service}; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        return {
            "content-security-policy": policy,
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-store",
            "referrer-policy": "same-origin",
        }


def _label(_request: Any) -> str:
    return "A visitor of the demo"


def asset(path: str) -> tuple[bytes, str]:
    """Return a file of the page and its media type."""
    file = ASSETS[path]
    return file.read_bytes(), _TYPES[file.suffix]


def new_visitor() -> str:
    """The user id of a new visitor."""
    return secrets.token_urlsafe(16)


def cookie_of(visitor: str) -> dict[str, Any]:
    """The arguments with which each framework sets the visitor's cookie."""
    return {"key": COOKIE, "value": visitor, "httponly": True, "samesite": "lax", "path": "/"}


def flask_app(chat: Chat) -> Any:
    """The app in Flask."""
    from flask import Flask, Response, request
    from wattfare_flask import WattfareMiddleware

    app = Flask("demo", static_folder=None)

    @app.get("/")
    def home() -> Response:  # pyright: ignore[reportUnusedFunction]
        answer = Response(chat.page(), headers=chat.headers(), mimetype="text/html")
        if COOKIE not in request.cookies:
            answer.set_cookie(**cookie_of(new_visitor()))
        return answer

    for path in ASSETS:
        app.add_url_rule(path, path, partial(_flask_asset, path))
    WattfareMiddleware(app, resolve_user=lambda seen: seen.cookies.get(COOKIE), **chat.options())
    return app


def _flask_asset(path: str) -> Any:
    from flask import Response

    content, media_type = asset(path)
    return Response(content, content_type=media_type)


def starlette_app(chat: Chat) -> Any:
    """The app in Starlette."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route
    from wattfare_starlette import WattfareMiddleware

    async def home(request: Request) -> Response:
        answer = HTMLResponse(chat.page(), headers=chat.headers())
        if COOKIE not in request.cookies:
            answer.set_cookie(**cookie_of(new_visitor()))
        return answer

    async def file(request: Request) -> Response:
        content, media_type = asset(request.url.path)
        return Response(content, media_type=media_type)

    app = Starlette(routes=[Route("/", home), *(Route(path, file) for path in ASSETS)])
    app.add_middleware(
        WattfareMiddleware,
        resolve_user=lambda request: request.cookies.get(COOKIE),
        **chat.options(),
    )
    return app


def litestar_app(chat: Chat) -> Any:
    """The app in Litestar."""
    from litestar import Litestar, MediaType, Request, Response, get
    from wattfare_litestar import WattfarePlugin

    @get("/")
    async def home(request: Request[Any, Any, Any]) -> Response[str]:
        answer = Response(chat.page(), media_type=MediaType.HTML, headers=chat.headers())
        if COOKIE not in request.cookies:
            answer.set_cookie(**cookie_of(new_visitor()))
        return answer

    @get(list(ASSETS))
    async def file(request: Request[Any, Any, Any]) -> Response[bytes]:
        content, media_type = asset(request.url.path)
        return Response(content, media_type=media_type)

    plugin = WattfarePlugin(
        resolve_user=lambda request: request.cookies.get(COOKIE), **chat.options()
    )
    return Litestar(
        route_handlers=[home, file],
        plugins=[plugin],
        openapi_config=None,
        signature_namespace={"Any": Any, "Request": Request, "Response": Response},
    )


APPS: Mapping[str, Callable[[Chat], Any]] = {
    "flask": flask_app,
    "starlette": starlette_app,
    "litestar": litestar_app,
}
