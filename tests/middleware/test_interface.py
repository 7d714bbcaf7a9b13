"""The middleware recognizes the interface of an app, and servers recognize the interface of the
middleware."""

from __future__ import annotations

import functools
import traceback
from typing import Any

import pytest
import uvicorn
import wattfare_flask
import wattfare_litestar
import wattfare_starlette
from asgiref.wsgi import WsgiToAsgi
from fastapi import FastAPI
from flask import Flask
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.utils import is_asgi, wrap_app
from litestar import Litestar
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from support.fake_wattfare import SECRET_KEY
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Request as WerkzeugRequest

from wattfare_mw import (
    AsyncWattfare,
    Wattfare,
    WattfareAuthError,
    WattfareError,
    WattfareMiddleware,
)
from wattfare_mw.middleware.asgi import WattfareASGIMiddleware
from wattfare_mw.middleware.wsgi import WattfareWSGIMiddleware

OPTIONS: dict[str, Any] = {"resolve_user": lambda request: "u", "secret_key": SECRET_KEY}


async def asgi_function(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi_function(environ: Any, start_response: Any) -> Any: ...


def returns_a_coroutine(scope: Any, receive: Any, send: Any) -> Any:
    return asgi_function(scope, receive, send)


def wsgi_generator(environ: Any, start_response: Any) -> Any:
    yield b""


class ASGIObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class SyncASGIObject:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any: ...


class WSGIObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...

    def method(self, environ: Any, start_response: Any) -> Any: ...

    @staticmethod
    def static(environ: Any, start_response: Any) -> Any: ...

    @classmethod
    def of_class(cls, environ: Any, start_response: Any) -> Any: ...


class DjangoLikeWSGIHandler:
    request_class = object

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class DjangoLikeASGIHandler(DjangoLikeWSGIHandler):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any: ...


class AsyncArgs:
    async def __call__(self, *args: Any) -> None: ...


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return around


def with_more(more: Any, scope: Any, receive: Any, send: Any) -> None: ...


async def async_with_more(more: Any, scope: Any, receive: Any, send: Any) -> None: ...


@WerkzeugRequest.application
def werkzeug_app(request: Any) -> Any: ...


def _flask_wrapped() -> Any:
    app = Flask("x")
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    return app


@pytest.mark.parametrize(
    "app",
    [
        asgi_function,
        returns_a_coroutine,
        ASGIObject(),
        ASGIObject().method,
        SyncASGIObject(),
        DjangoLikeASGIHandler(),
        AsyncArgs(),
        decorated(asgi_function),
        functools.partial(asgi_function),
        functools.partial(functools.partial(async_with_more, 1)),
        functools.partial(with_more, 1),
        lambda scope, receive, send: None,
        Starlette(),
        FastAPI(),
        Litestar(logging_config=None),  # which would configure logging for every test
        GZipMiddleware(Starlette()),
        WsgiToAsgi(wsgi_function),
    ],
)
def test_asgi_apps_are_recognized(app: Any) -> None:
    middleware = WattfareMiddleware(app, **OPTIONS)
    assert type(middleware) is WattfareASGIMiddleware
    assert type(WattfareMiddleware(middleware, **OPTIONS)) is WattfareASGIMiddleware
    assert type(WattfareMiddleware(decorated(middleware), **OPTIONS)) is WattfareASGIMiddleware
    # The way servers check it.
    config = uvicorn.Config(middleware, log_config=None)
    config.load()
    assert config.interface == "asgi3"
    assert is_asgi(middleware)
    assert isinstance(wrap_app(middleware, 1000, None), ASGIWrapper)


@pytest.mark.parametrize(
    "app",
    [
        wsgi_function,
        wsgi_generator,
        WSGIObject(),
        WSGIObject().method,
        WSGIObject.static,
        WSGIObject.of_class,
        DjangoLikeWSGIHandler(),
        decorated(wsgi_function),
        functools.partial(wsgi_function),
        lambda environ, start_response: None,
        Flask("x"),
        Flask("x").wsgi_app,
        _flask_wrapped(),
        ProxyFix(wsgi_function),
    ],
)
def test_wsgi_apps_are_recognized(app: Any) -> None:
    middleware: Any = WattfareMiddleware(app, **OPTIONS)
    assert type(middleware) is WattfareWSGIMiddleware
    assert type(WattfareMiddleware(middleware, **OPTIONS)) is WattfareWSGIMiddleware
    assert not is_asgi(middleware)
    assert not isinstance(wrap_app(middleware, 1000, None), ASGIWrapper)


@pytest.mark.parametrize(
    "app",
    [
        lambda *args: None,
        lambda *args, **kwargs: None,
        lambda a, b, c=None: None,
        lambda a: None,
        lambda: None,
        print,
        with_more,
        werkzeug_app,
    ],
)
def test_unrecognized_app_raises_type_error(app: Any) -> None:
    with pytest.raises(TypeError, match="interface='asgi' or interface='wsgi'"):
        WattfareMiddleware(app, **OPTIONS)
    for interface, kind in (("asgi", WattfareASGIMiddleware), ("wsgi", WattfareWSGIMiddleware)):
        assert type(WattfareMiddleware(app, interface=interface, **OPTIONS)) is kind


@pytest.mark.parametrize(
    "app", [None, 7, "app:app", object(), Flask, Starlette, ASGIObject, [], {}]
)
def test_non_app_raises_type_error(app: Any) -> None:
    with pytest.raises(TypeError, match="not an app"):
        WattfareMiddleware(app, **OPTIONS)


def test_unknown_interface_raises_value_error() -> None:
    with pytest.raises(ValueError, match="'auto', 'asgi' or 'wsgi'"):
        WattfareMiddleware(asgi_function, interface="ASGI", **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"resolve_user": None}, TypeError, "resolve_user"),
        ({"resolve_user": "user"}, TypeError, "resolve_user"),
        ({"secret_key": "pk_test_1"}, WattfareAuthError, "sk_"),
        ({"secret_key": ""}, WattfareAuthError, "sk_"),
        ({"base_url": "wattfare.com"}, ValueError, "base_url"),
        ({"client": object(), "secret_key": None}, TypeError, "client"),
        ({"client": Wattfare(SECRET_KEY)}, TypeError, "not both"),
        ({"on_usage": "x"}, TypeError, "on_usage"),
        ({"max_body_bytes": "20MB"}, ValueError, "max_body_bytes"),
        ({"max_body_bytes": -1}, ValueError, "max_body_bytes"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
@pytest.mark.parametrize("app", [asgi_function, wsgi_function])
def test_invalid_option_raises_at_start(app: Any, options: Any, error: Any, expected: str) -> None:
    with pytest.raises(error, match=expected):
        WattfareMiddleware(app, **{**OPTIONS, **options})


NEEDLE = "0needle0"


@pytest.mark.parametrize(
    "options",
    [
        {"secret_key": f"pk_{NEEDLE}"},
        {"secret_key": f"sk_test_1_{NEEDLE} x"},
        {"secret_key": f"sk_test_1_{NEEDLE}", "base_url": "wattfare.com"},
        {"secret_key": f"sk_test_1_{NEEDLE}", "on_usage": "x"},
        {"secret_key": f"sk_test_1_{NEEDLE}", "client": Wattfare(SECRET_KEY)},
        {"secret_key": f"sk_test_1_{NEEDLE}", "token_path": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "kind",
    [
        lambda **options: WattfareMiddleware(asgi_function, **options),
        lambda **options: WattfareMiddleware(wsgi_function, **options),
        lambda **options: wattfare_flask.WattfareMiddleware(Flask("app"), **options),
        lambda **options: wattfare_starlette.WattfareMiddleware(Starlette(), **options),
        lambda **options: wattfare_litestar.WattfarePlugin(**options),
    ],
    ids=["asgi", "wsgi", "flask", "starlette", "litestar"],
)
def test_traceback_does_not_show_the_key(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises((WattfareError, TypeError, ValueError)) as caught:
        kind(resolve_user=lambda request: "u", **options)
    # What error reporters send: the local variables of each frame, except the test's own.
    expected = "".join(
        f"{frame}: {value!r}\n"
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        if frame.f_code.co_filename != __file__
        for value in frame.f_locals.values()
    )
    assert expected
    assert NEEDLE not in expected
    assert NEEDLE not in repr(caught.value)


def test_key_is_read_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.delenv("WATTFARE_SECRET_KEY", raising=False)
    with pytest.raises(WattfareAuthError, match="WATTFARE_SECRET_KEY"):
        WattfareMiddleware(asgi_function, resolve_user=lambda request: "u")
    monkeypatch.setenv("WATTFARE_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("WATTFARE_BASE_URL", "http://127.0.0.1:1/api/v1/")
    middleware = WattfareMiddleware(asgi_function, resolve_user=lambda request: "u")
    assert SECRET_KEY not in repr(middleware)
    assert middleware._client.base_url == "http://127.0.0.1:1"


@pytest.mark.parametrize("kind", [Wattfare, AsyncWattfare])
@pytest.mark.parametrize("app", [asgi_function, wsgi_function])
def test_client_of_either_kind_is_accepted(app: Any, kind: Any) -> None:
    middleware = WattfareMiddleware(
        app, resolve_user=lambda request: "u", client=kind(SECRET_KEY, base_url="http://x")
    )
    assert middleware._client.base_url == "http://x"
