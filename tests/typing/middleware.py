"""What type checkers must infer for the middleware."""

# Each line below with a comment that ignores an error must have one.
# pyright: reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import wattfare_flask
import wattfare_litestar
import wattfare_starlette
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar
from starlette.applications import Starlette
from starlette.middleware import Middleware
from werkzeug.middleware.proxy_fix import ProxyFix

from wattfare_mw import (
    AsyncUser,
    Request,
    RequestLimit,
    SessionRequest,
    TokenUsage,
    User,
    WattfareMiddleware,
)
from wattfare_mw.framework import WattfareASGIMiddleware, WattfareWSGIMiddleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def who(request: Request) -> str | None:
    return request.cookies.get("user")


async def asgi(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None: ...


async def asgi_of_any(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return [b"Hello."]


def wsgi_of_any(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return [b"Hello."]


# The class follows from the app.
assert_type(WattfareMiddleware(asgi, resolve_user=who), WattfareASGIMiddleware)
assert_type(WattfareMiddleware(asgi_of_any, resolve_user=who), WattfareASGIMiddleware)
assert_type(WattfareMiddleware(Starlette(), resolve_user=who), WattfareASGIMiddleware)
assert_type(WattfareMiddleware(FastAPI(), resolve_user=who), WattfareASGIMiddleware)
assert_type(WattfareMiddleware(Litestar(), resolve_user=who), WattfareASGIMiddleware)
assert_type(WattfareMiddleware(wsgi, resolve_user=who), WattfareWSGIMiddleware)
assert_type(WattfareMiddleware(wsgi_of_any, resolve_user=who), WattfareWSGIMiddleware)
assert_type(WattfareMiddleware(Flask("app"), resolve_user=who), WattfareWSGIMiddleware)
assert_type(WattfareMiddleware(Flask("app").wsgi_app, resolve_user=who), WattfareWSGIMiddleware)
assert_type(WattfareMiddleware(ProxyFix(wsgi), resolve_user=who), WattfareWSGIMiddleware)

# Also if another middleware is inside.
inner = WattfareMiddleware(asgi, resolve_user=who)
assert_type(WattfareMiddleware(inner, resolve_user=who), WattfareASGIMiddleware)


def of_an_app_that_is_not_known(app: Any, one: Callable[..., Any]) -> None:
    assert_type(WattfareMiddleware(app, interface="asgi", resolve_user=who), WattfareASGIMiddleware)
    assert_type(WattfareMiddleware(app, interface="wsgi", resolve_user=who), WattfareWSGIMiddleware)
    assert_type(WattfareMiddleware(one, interface="wsgi", resolve_user=who), WattfareWSGIMiddleware)
    wrapped: WattfareMiddleware = WattfareMiddleware(app, resolve_user=who)
    assert_type(wrapped.paths, Iterable[str])


# Every kind is a WattfareMiddleware, and an app.
of_asgi: WattfareMiddleware = WattfareMiddleware(asgi, resolve_user=who)
of_wsgi: WattfareMiddleware = WattfareMiddleware(wsgi, resolve_user=who)
server_app: WSGIApplication = WattfareMiddleware(Flask("app"), resolve_user=who)
starlette = Starlette(middleware=[Middleware(WattfareMiddleware, resolve_user=who)])
starlette.add_middleware(WattfareMiddleware, resolve_user=who)
starlette.add_middleware(wattfare_starlette.WattfareMiddleware, resolve_user=who)
Starlette(middleware=[Middleware(wattfare_starlette.WattfareMiddleware, resolve_user=who)])


# What it has.
async def use(scope: MutableMapping[str, Any], environ: WSGIEnvironment) -> None:
    app = WattfareMiddleware(asgi, resolve_user=who)
    assert_type(await app.user(scope), AsyncUser)
    await app.aclose()
    wsgi_app = WattfareMiddleware(wsgi, resolve_user=who)
    assert_type(wsgi_app.user(environ), User)
    wsgi_app.close()
    assert_type(list(app.paths), list[str])
    # Names of the app's pass.
    WattfareMiddleware(FastAPI(), resolve_user=who).dependency_overrides = {}
    WattfareMiddleware(Flask("app"), resolve_user=who).config["TESTING"] = True


# `resolve_user` returns any kind of id, and may be async.
def by_number(request: Request) -> int | None:
    return 1


async def by_uuid(request: Request) -> UUID | None:
    return UUID(int=1)


def not_a_user(request: Request) -> bytes:
    return b"ann"


WattfareMiddleware(asgi, resolve_user=by_number)
WattfareMiddleware(asgi, resolve_user=by_uuid)
WattfareMiddleware(asgi, resolve_user=lambda request: request.headers.get("user"))


# The other function options.
async def limit_of(request: Request) -> RequestLimit:
    return RequestLimit(5)


def label_of(request: Request) -> str | None:
    return None


def take_down(
    user: str | None, model: str | None, usage: TokenUsage | None, cost: Decimal | None
) -> None: ...


WattfareMiddleware(asgi, resolve_user=who, request_limit=5, account_label="ann@example.com")
WattfareMiddleware(asgi, resolve_user=who, request_limit=SessionRequest(RequestLimit(5)))
WattfareMiddleware(asgi, resolve_user=who, request_limit=limit_of, account_label=label_of)
WattfareMiddleware(asgi, resolve_user=who, on_usage=take_down)


# The classes of the adapters.
assert_type(
    wattfare_starlette.WattfareMiddleware(Starlette(), resolve_user=who),
    wattfare_starlette.WattfareMiddleware,
)
wattfare_flask.WattfareMiddleware(Flask("app"), resolve_user=lambda request: None)
Litestar(plugins=[wattfare_litestar.WattfarePlugin(resolve_user=lambda connection: None)])


# Mistakes.
WattfareMiddleware(FastAPI())  # type: ignore[call-overload]
WattfareMiddleware(asgi, resolve_user=who, heartbeats=1)  # type: ignore[call-overload]
WattfareMiddleware(asgi, resolve_user=not_a_user)  # type: ignore[arg-type]
WattfareMiddleware(3, resolve_user=who)  # type: ignore[call-overload]
wattfare_starlette.WattfareMiddleware(Starlette())  # type: ignore[call-arg]
