"""An app behind the middleware is configured and recognized as before."""

from __future__ import annotations

import asyncio
import atexit
import copy
import functools
import gc
import inspect
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from wsgiref.validate import validator

import asgiref.sync
import pytest
import wattfare_litestar
import wattfare_starlette
from fastapi import Depends, FastAPI
from flask import Flask
from litestar import Litestar
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from support.drivers import INFERENCE, JSON, TOKEN, ASGIDriver, WSGIDriver, asgi_app, wsgi_app
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.patience import PATIENCE
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from wattfare_mw import Wattfare, WattfareMiddleware
from wattfare_mw.middleware.asgi import WattfareASGIMiddleware
from wattfare_mw.middleware.wsgi import WattfareWSGIMiddleware

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it uses the module `cgi`
    from webob import Request as WebobRequest
    from webob.dec import wsgify

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"resolve_user": lambda request: "u", "secret_key": SECRET_KEY}


@pytest.fixture(
    params=[
        WattfareMiddleware,
        wattfare_starlette.WattfareMiddleware,
        wattfare_litestar.WattfareMiddleware,
    ]
)
def around(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Each middleware that wraps the app."""
    return functools.partial(request.param, **OPTIONS)


@pytest.fixture(params=[1, 2])
def twice(around: Any, request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """The same, once and twice around the app."""

    def wrap(app: Any) -> Any:
        for _ in range(request.param):
            app = around(app)
        return app

    return wrap


# -- attribute reads and writes


def test_attributes_that_the_middleware_lacks_are_the_apps(twice: Any) -> None:
    inner = FastAPI(title="mine")
    app: Any = twice(inner)
    assert app.title == "mine"
    assert app.state is inner.state

    @app.get("/added")
    def added() -> str:
        return "added"

    with TestClient(app) as client:
        assert client.get("/added").json() == "added"


def test_dependency_override_takes_effect(twice: Any) -> None:
    inner = FastAPI()

    def setting() -> str:
        return "real"

    @inner.get("/setting")
    def show(value: str = Depends(setting)) -> str:
        return value

    app: Any = twice(inner)
    app.dependency_overrides = {setting: lambda: "overridden"}
    with TestClient(app) as client:
        assert client.get("/setting").json() == "overridden"
        with patch.object(app, "dependency_overrides", {}):
            assert client.get("/setting").json() == "real"
        assert client.get("/setting").json() == "overridden"
    assert "dependency_overrides" not in vars(app)


class Configured:
    """An app with each kind of attribute: its own, its class's, and a property without deleter."""

    inherited = "real"

    def __init__(self) -> None:
        self.own = self._setting = "real"

    @property
    def setting(self) -> str:
        return self._setting

    @setting.setter
    def setting(self, value: str) -> None:
        self._setting = value

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize("name", ["own", "inherited", "setting"])
def test_patched_attribute_is_restored(twice: Any, name: str) -> None:
    inner = Configured()
    before = {**vars(inner)}
    app: Any = twice(inner)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for value in ("one", "two"):
            monkeypatch.setattr(app, name, value)
            assert getattr(inner, name) == value
        with patch.object(app, name, "three"):
            assert getattr(inner, name) == "three"
        assert getattr(inner, name) == "two"
    assert getattr(inner, name) == "real"
    assert vars(inner) == before
    if name == "own":
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delattr(app, name)
            assert not hasattr(inner, name)
        assert vars(inner) == before


def test_new_attributes_stay_on_the_middleware(twice: Any) -> None:
    inner = Starlette()
    app: Any = twice(inner)
    assert not hasattr(app, "nonsense")
    with pytest.raises(AttributeError, match="nonsense"):
        app.nonsense  # noqa: B018
    app.nonsense = 1
    assert vars(app)["nonsense"] == 1
    assert not hasattr(inner, "nonsense")
    del app.nonsense
    assert not hasattr(app, "nonsense")


def test_attributes_of_the_middleware_are_its_own(around: Any) -> None:
    inner: Any = SimpleNamespace(paths="theirs", user="theirs", __call__=asgi_app)
    app: Any = around(asgi_app)
    app.app = inner
    assert app.app is inner
    assert INFERENCE in app.paths
    app.user = "ours"
    assert inner.user == "theirs"


async def other_app(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("the other app")(scope, receive, send)


def test_inner_app_can_be_replaced(around: Any) -> None:
    app: Any = around(asgi_app)
    app.app = other_app
    assert TestClient(app).get("/").text == "the other app"
    wsgi: Any = WattfareMiddleware(wsgi_app, **OPTIONS)
    wsgi.app = lambda environ, start_response: (start_response("200 OK", []), [b"other"])[1]
    assert Client(wsgi).get("/").text == "other"


def test_underscored_names_are_never_the_apps(twice: Any) -> None:
    class Inner:
        _private = "theirs"
        __fancy__ = "theirs"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

        def __len__(self) -> int:
            return 0

        def __getattr__(self, name: str) -> str:
            return f"anything: {name}"

    inner = Inner()
    app: Any = twice(inner)
    assert app.public == "anything: public"
    for name in ("_private", "__fancy__", "__len__", "_asgi_single_callable"):
        assert not hasattr(app, name)
    assert app
    app._private = "ours"
    assert inner._private == "theirs"


def test_flask_app_is_configured_through_the_middleware() -> None:
    flask = Flask("x")
    app: Any = WattfareMiddleware(flask, **OPTIONS)
    app.wsgi_app = ProxyFix(app.wsgi_app)
    assert isinstance(flask.wsgi_app, ProxyFix)
    app.config["TESTING"] = True
    assert flask.testing

    @app.route("/page")
    def page() -> str:
        return "the page"

    assert Client(app).get("/page").text == "the page"
    assert Client(app).put(TOKEN).status_code == 405


def test_middleware_without_an_app_has_no_app_attributes() -> None:
    for kind in (WattfareASGIMiddleware, WattfareWSGIMiddleware):
        app: Any = object.__new__(kind)
        assert not hasattr(app, "app")
        assert not hasattr(app, "public")
        assert kind.__name__ in repr(app)
        app.public = 1
        del app.public
        for copied in (copy.copy(app), copy.deepcopy(app), pickle.loads(pickle.dumps(app))):
            assert type(copied) is kind


def test_plugin_without_an_app_has_no_app_attributes() -> None:
    plugin = wattfare_litestar.WattfarePlugin(**OPTIONS)
    assert not hasattr(plugin._driver, "public")


@pytest.mark.parametrize("app", [asgi_app, wsgi_app])
def test_copies_wrap_a_copy_of_the_app(app: Any) -> None:
    original: Any = WattfareMiddleware(app, **OPTIONS)
    for copied in (copy.copy(original), copy.deepcopy(original)):
        assert type(copied) is type(original)
        assert copied.app is app  # functions are not copied
    inner = SimpleNamespace(app=app)
    original.app = inner
    assert copy.deepcopy(original).app is not inner
    # as without the middleware
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        pickle.dumps(original)


def test_middleware_is_a_coroutine_function_if_the_app_is(around: Any) -> None:
    class Marked:
        _is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)
        _is_coroutine_mark = getattr(inspect, "_is_coroutine_mark", None)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    for inner in (asgi_app, Marked(), Starlette(), Litestar()):
        app: Any = around(inner)
        assert not inspect.iscoroutinefunction(app)
        assert not asgiref.sync.iscoroutinefunction(app)
        assert inspect.iscoroutinefunction(app.__call__)


# -- apps of every kind


class OfASGI2:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await asgi_app(self.scope, receive, send)


def function_of_asgi_2(scope: Any) -> Any:
    async def answer(receive: Any, send: Any) -> None:
        await asgi_app(scope, receive, send)

    return answer


class Endpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("the app: " + request.url.path)


class AwaitableASGI:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self._call = asgi_app(scope, receive, send)

    def __await__(self) -> Any:
        return self._call.__await__()


class OfWSGI:
    """In the style of PEP 3333."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        self._answer = wsgi_app(environ, start_response)

    def __iter__(self) -> Any:
        return self._answer


class LikeDash:
    """Dash 4: holds an app of any framework and accepts any arguments."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.server(*args, **kwargs)


def _undeclared(app: Any) -> Any:
    @functools.wraps(app)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


ASGI_APPS = [
    OfASGI2,
    functools.partial(OfASGI2),
    function_of_asgi_2,
    Endpoint,
    AwaitableASGI,
    LikeDash(asgi_app),
    LikeDash(LikeDash(asgi_app)),
    _undeclared(asgi_app),
    LikeDash(_undeclared(AwaitableASGI)),
]


@pytest.mark.parametrize("app", ASGI_APPS)
def test_asgi_apps_of_every_kind_are_recognized(app: Any, fake: FakeWattfare) -> None:
    middleware: Any = WattfareMiddleware(app, **OPTIONS, base_url=fake.url)
    assert type(middleware) is WattfareASGIMiddleware
    client = TestClient(middleware)
    assert client.get("/page").text == "the app: /page"
    assert client.post(TOKEN, headers=JSON).json()["token"] == "a.b.c"


@wsgify
def of_webob(request: WebobRequest) -> str:
    return "the app: " + request.path


class MethodOfWebob:
    @wsgify
    def app(self, request: WebobRequest) -> str:
        return "the app: " + request.path


class OwnWsgify(wsgify):
    """A subclass in a module of the app."""


WSGI_APPS = [
    OfWSGI,
    LintMiddleware(wsgi_app),
    validator(wsgi_app),
    of_webob,
    MethodOfWebob().app,
    OwnWsgify(lambda request: "the app: " + request.path),
    LikeDash(wsgi_app),
    LikeDash(Flask("x")),
    _undeclared(wsgi_app),
]


@pytest.mark.parametrize("app", WSGI_APPS)
@pytest.mark.filterwarnings("ignore::werkzeug.middleware.lint.WSGIWarning")
def test_wsgi_apps_of_every_kind_are_recognized(app: Any, fake: FakeWattfare) -> None:
    middleware: Any = WattfareMiddleware(app, **OPTIONS, base_url=fake.url)
    assert type(middleware) is WattfareWSGIMiddleware
    client = Client(middleware)
    answer = client.get("/page")
    assert answer.text == "the app: /page" or answer.status_code == 404  # Flask has no page here
    answer.close()
    assert client.post(TOKEN, headers=JSON).json["token"] == "a.b.c"
    middleware.close()


class Endless:
    """An attribute chain that leads to itself."""

    def __init__(self) -> None:
        self.app = [self]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @property
    def server(self) -> Any:
        return Endless()


@pytest.mark.parametrize("app", [Endless(), LikeDash(None), LikeDash("x"), LikeDash(LikeDash(7))])
def test_unrecognized_app_raises_type_error(app: Any) -> None:
    with pytest.raises(TypeError, match="interface='asgi' or interface='wsgi'"):
        WattfareMiddleware(app, **OPTIONS)


# -- the end of an app


def test_client_is_closed_with_its_app(fake: FakeWattfare) -> None:
    def make() -> tuple[weakref.ref[Any], Any]:
        def app(environ: Any, start_response: Any) -> Any: ...

        driver = WSGIDriver(app=app, **OPTIONS, base_url=fake.url)
        assert driver.request("POST", TOKEN, JSON).status == 200
        return weakref.ref(app), fake.next("/sessions")

    make()  # the first one in the process registers for all
    gc.collect()
    before = atexit._ncallbacks()
    made = [make() for _ in range(3)]
    gc.collect()
    assert atexit._ncallbacks() == before
    for app, exchange in made:
        assert app() is None
        assert exchange.closed.wait(PATIENCE), "its connection stayed open"


def test_client_that_the_app_passed_stays_open(fake: FakeWattfare) -> None:
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        driver = WSGIDriver(resolve_user=lambda request: "u", client=client)
        assert driver.request("POST", TOKEN, JSON).status == 200
        exchange = fake.next("/sessions")
        del driver
        gc.collect()
        assert not exchange.closed.wait(0.1)


def test_asgi_app_can_be_garbage_collected() -> None:
    driver = ASGIDriver(**OPTIONS)
    middleware = weakref.ref(driver.middleware)
    driver.close()
    del driver
    gc.collect()
    assert middleware() is None
