"""Other requests go to the app unchanged: paths, mounts, websockets, lifespan. Also tests when
connections are closed, and which client closes them."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import traceback
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from support.drivers import (
    INFERENCE,
    JSON,
    MODELS,
    STATUS,
    TOKEN,
    Drive,
    body_of,
    environ_of,
    scope_of,
)
from support.drivers import asgi_app as _asgi_app
from support.drivers import wsgi_app as _wsgi_app
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.patience import PATIENCE
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from wattfare_mw import AsyncWattfare, Wattfare, WattfareMiddleware

OPTIONS: dict[str, Any] = {"resolve_user": lambda request: "user_1", "secret_key": SECRET_KEY}
NOT_OURS = [
    *("/", "", "/api", "/api/", TOKEN + "/", TOKEN[:-1], "/" + TOKEN, TOKEN.upper(), "/x" + TOKEN),
    *("/api/wattfare", "/api//wattfare-token", "/api/./wattfare-token", "*", "/ü"),
]


@pytest.mark.parametrize("path", NOT_OURS)
async def test_asgi_app_gets_the_same_objects_and_no_extra_frame(path: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        frames = traceback.extract_stack()
        seen.append((scope, receive, send, len(frames)))

    async def receive() -> Any:
        raise AssertionError("receive() was called")

    async def send(message: Any) -> None:
        raise AssertionError("send() was called")

    scope = scope_of("POST", path, {})
    before = dict(scope)
    await app(scope, receive, send)
    await WattfareMiddleware(app, **OPTIONS)(scope, receive, send)
    direct, through = seen
    assert all(one is other for one, other in zip(through[:3], (scope, receive, send), strict=True))
    assert scope == before
    assert through[3] == direct[3]  # no extra call of the middleware


async def test_asgi_middleware_is_recognized_as_asgi() -> None:
    """Servers and other middleware recognize an app's interface by its ``__call__``."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    ours = WattfareMiddleware(app, **OPTIONS)
    assert inspect.iscoroutinefunction(ours.__call__)
    scope = scope_of("GET", "/", {})
    await ours.__call__(scope, None, None)
    await WattfareMiddleware(ours, **OPTIONS)(scope, None, None)
    assert seen == [scope, scope]


@pytest.mark.parametrize("path", NOT_OURS)
def test_wsgi_app_gets_the_same_objects_and_no_extra_frame(path: str) -> None:
    seen: list[Any] = []
    result: Any = object()

    def app(environ: Any, start_response: Any) -> Any:
        seen.append((environ, start_response, len(traceback.extract_stack())))
        return result

    def start_response(*args: Any) -> Any:
        raise AssertionError("start_response() was called")

    environ = environ_of("POST", path, {})
    before = dict(environ)
    app(environ, start_response)
    assert WattfareMiddleware(app, **OPTIONS)(environ, start_response) is result
    direct, through = seen
    assert through[0] is environ
    assert through[1] is start_response
    assert environ == before
    assert through[2] - direct[2] == 1


async def test_asgi_error_of_the_app_propagates() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await WattfareMiddleware(app, **OPTIONS)(scope_of("GET", "/", {}), None, None)


async def test_websocket_on_a_wattfare_path_goes_to_the_app() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope = {**scope_of("GET", TOKEN, {}), "type": "websocket"}
    receive, send = object(), object()
    await WattfareMiddleware(app, **OPTIONS)(scope, receive, send)
    assert seen[0][0] is scope
    assert seen[0][1] is receive
    assert seen[0][2] is send


# -- Wattfare's paths


@pytest.mark.parametrize(
    ("option", "path", "method"),
    [
        ("token_path", TOKEN, "POST"),
        ("status_path", STATUS, "GET"),
        ("inference_path", INFERENCE, "POST"),
        ("inference_path", MODELS, "GET"),
    ],
)
def test_none_turns_a_path_off(drive: Drive, option: str, path: str, method: str) -> None:
    ours = drive().request(method, path, JSON, body_of() if path == INFERENCE else b"")
    assert (ours.status, ours.body[:7]) != (200, b"the app")
    answer = drive(**{option: None}).request(method, path)
    assert answer.body == b"the app: " + path.encode()


def test_paths_can_be_changed(drive: Drive) -> None:
    driver = drive(token_path="/tök en", inference_path="/v1/chat/completions", status_path="/s")
    assert driver.request("POST", "/tök en").status == 200
    assert driver.request("POST", "/v1/chat/completions", JSON, body_of()).status == 200
    assert driver.request("GET", "/v1/models").json["data"]
    assert driver.request("GET", "/s").json["connected"]
    for path in (TOKEN, INFERENCE, STATUS, MODELS):
        assert driver.request("POST", path).body.startswith(b"the app")


@pytest.mark.parametrize(
    ("inference", "models"),
    [
        ("/ai", "/models"),
        ("/a/b", "/a/models"),
        ("/chat/completions", "/models"),
        ("/a/", "/a/models"),
    ],
)
def test_model_list_is_next_to_the_inference_path(
    drive: Drive, inference: str, models: str
) -> None:
    driver = drive(inference_path=inference)
    assert driver.request("GET", models).json["data"]


@pytest.mark.parametrize(
    "paths",
    [
        {"token_path": "token"},
        {"token_path": ""},
        {"token_path": STATUS},
        {"status_path": "/a/models", "inference_path": "/a/chat"},
        {"inference_path": TOKEN},
        {"inference_path": "/models"},
    ],
)
def test_invalid_paths_raise_at_start(drive: Drive, paths: Any) -> None:
    with pytest.raises(ValueError, match="path"):
        drive(**paths)


@pytest.mark.parametrize(
    "option",
    [
        *({name: True} for name in ("token_path", "inference_path", "status_path", "client_path")),
        {"client_path": 5},
        {"allow_grants": "no"},
        {"allow_grants": None},
        {"current_user": "yes"},
    ],
    ids=str,
)
def test_option_of_another_type_is_named(drive: Drive, option: Any) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(option))} must be "):
        drive(**option)


def test_query_does_not_change_the_path(drive: Drive) -> None:
    assert drive().request("POST", TOKEN, query="a=/api/b&c").status == 200


# -- below a mount


@pytest.mark.parametrize(
    ("root_path", "path", "ours"),
    [
        ("/mnt", "/mnt" + TOKEN, True),
        ("/mnt", TOKEN, True),  # a server that leaves the root path out
        ("/mnt", "/mntx" + TOKEN, False),
        ("/mnt", "/other" + TOKEN, False),
        ("/mnt", "/mnt", False),
        ("", TOKEN, True),
        ("/", TOKEN, True),
        ("/a/b", "/a/b" + TOKEN, True),
        ("/ü", "/ü" + TOKEN, True),
    ],
)
async def test_asgi_root_path(fake: FakeWattfare, root_path: str, path: str, ours: bool) -> None:
    middleware: Any = WattfareMiddleware(_asgi_app, base_url=fake.url, **OPTIONS)
    app = ApplicationCommunicator(middleware, scope_of("POST", path, {}, root_path=root_path))
    await app.send_input({"type": "http.request"})
    await app.receive_output(PATIENCE)
    body = (await app.receive_output(PATIENCE))["body"]
    assert body.startswith(b"the app") == (not ours)
    await app.wait()
    await middleware.aclose()


async def _page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("a page")


async def _get(app: Any, path: str, method: str = "GET") -> tuple[int, bytes]:
    talk = ApplicationCommunicator(app, scope_of(method, path, {}))
    await talk.send_input({"type": "http.request"})
    start = await talk.receive_output(PATIENCE)
    body = await talk.receive_output(PATIENCE)
    await talk.wait()
    return start["status"], body["body"]


async def test_starlette_mounts_and_middleware(fake: FakeWattfare) -> None:
    # A mounted app gets no lifespan: the parent passes a client and closes it.
    async with AsyncWattfare(SECRET_KEY, base_url=fake.url) as client:
        options: dict[str, Any] = {"resolve_user": lambda request: "u", "client": client}
        pages = [Route("/page", _page)]
        inner = WattfareMiddleware(Starlette(routes=pages), **options)
        around = [Middleware(WattfareMiddleware, **options)]
        app = Starlette(
            routes=[
                Mount("/one", app=inner),
                Mount("/two", app=Starlette(routes=[Mount("/three", app=inner)])),
                Mount("/four", routes=pages, middleware=around),
            ]
        )
        for mount in ("/one", "/two/three", "/four"):
            assert await _get(app, mount + "/page") == (200, b"a page")
            status, body = await _get(app, mount + TOKEN, "POST")
            assert (status, b"token" in body) == (200, True)
        assert (await _get(app, TOKEN, "POST"))[0] == 404


async def test_starlette_add_middleware(fake: FakeWattfare) -> None:
    app = Starlette(routes=[Route("/page", _page)])
    app.add_middleware(WattfareMiddleware, base_url=fake.url, **OPTIONS)
    lifespan = await _started(app)
    assert await _get(app, "/page") == (200, b"a page")
    assert (await _get(app, TOKEN, "POST"))[0] == 200
    [exchange] = fake.exchanges
    await _stop(lifespan)
    assert await asyncio.to_thread(exchange.closed.wait, PATIENCE)


def test_werkzeug_mounts(fake: FakeWattfare) -> None:
    middleware: Any = WattfareMiddleware(_wsgi_app, base_url=fake.url, **OPTIONS)
    client = Client(DispatcherMiddleware(_wsgi_app, {"/one": middleware}))
    assert client.post("/one" + TOKEN).status_code == 200
    assert client.post("/one/x").data == b"the app: /x"
    assert client.post(TOKEN).data == b"the app: " + TOKEN.encode()
    middleware.close()


# -- lifespan, and when connections are closed


async def _started(app: Any) -> ApplicationCommunicator:
    lifespan = ApplicationCommunicator(app, {"type": "lifespan", "asgi": {"version": "3.0"}})
    await lifespan.send_input({"type": "lifespan.startup"})
    assert (await lifespan.receive_output(PATIENCE))["type"] == "lifespan.startup.complete"
    return lifespan


async def _stop(lifespan: ApplicationCommunicator) -> Any:
    await lifespan.send_input({"type": "lifespan.shutdown"})
    answer = await lifespan.receive_output(PATIENCE)
    await lifespan.wait()
    return answer


async def _lifespan_app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    scope.get("state", {})["told"] = True
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown." + scope.get("end", "complete"), "message": "m"})


@pytest.mark.parametrize("end", ["complete", "failed"])
async def test_asgi_own_connections_close_with_the_app(fake: FakeWattfare, end: str) -> None:
    middleware: Any = WattfareMiddleware(_lifespan_app, base_url=fake.url, **OPTIONS)
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}, "end": end}
    lifespan = ApplicationCommunicator(middleware, scope)
    await lifespan.send_input({"type": "lifespan.startup"})
    await lifespan.receive_output(PATIENCE)
    assert scope["state"] == {"told": True}
    assert (await _get(middleware, TOKEN, "POST"))[0] == 200
    exchange = fake.next("/sessions")
    assert not exchange.closed.is_set()
    answer = await _stop(lifespan)
    assert answer == {"type": f"lifespan.shutdown.{end}", "message": "m"}
    assert await asyncio.to_thread(exchange.closed.wait, PATIENCE)


async def test_asgi_connections_open_when_needed(fake: FakeWattfare) -> None:
    lifespan = await _started(WattfareMiddleware(_lifespan_app, base_url=fake.url, **OPTIONS))
    await _stop(lifespan)
    assert not fake.exchanges


async def test_asgi_client_passed_as_an_option_stays_open(fake: FakeWattfare) -> None:
    async with AsyncWattfare(SECRET_KEY, base_url=fake.url) as client:
        middleware: Any = WattfareMiddleware(
            _lifespan_app, resolve_user=lambda request: "u", client=client
        )
        lifespan = await _started(middleware)
        assert (await _get(middleware, TOKEN, "POST"))[0] == 200
        await _stop(lifespan)
        await middleware.aclose()
        assert (await client.user("u").status()).connected
        # The same connection was used again.
        first, second = fake.exchanges
        assert first.writer is second.writer
        assert not first.closed.is_set()
    assert await asyncio.to_thread(second.closed.wait, PATIENCE)


async def test_asgi_sibling_of_a_sync_client_is_closed_with_the_app(fake: FakeWattfare) -> None:
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        middleware: Any = WattfareMiddleware(
            _lifespan_app, resolve_user=lambda request: "u", client=client
        )
        lifespan = await _started(middleware)
        assert (await _get(middleware, TOKEN, "POST"))[0] == 200
        exchange = fake.next("/sessions")
        await _stop(lifespan)
        assert await asyncio.to_thread(exchange.closed.wait, PATIENCE)


def test_wsgi_close_closes_own_connections(fake: FakeWattfare) -> None:
    middleware: Any = WattfareMiddleware(_wsgi_app, base_url=fake.url, **OPTIONS)
    assert Client(middleware).post(TOKEN).status_code == 200
    exchange = fake.next("/sessions")
    assert not exchange.closed.is_set()
    middleware.close()
    assert exchange.closed.wait(PATIENCE)
    assert Client(middleware).post(TOKEN).status_code == 200  # the middleware opens new ones
    middleware.close()


def test_wsgi_client_passed_as_an_option_stays_open(fake: FakeWattfare) -> None:
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        middleware: Any = WattfareMiddleware(
            _wsgi_app, resolve_user=lambda request: "u", client=client
        )
        assert Client(middleware).post(TOKEN).status_code == 200
        middleware.close()
        assert client.user("u").status().connected
        first, second = fake.exchanges
        assert first.writer is second.writer


def test_wsgi_connections_close_at_exit_without_keeping_the_middleware_alive(
    fake: FakeWattfare,
) -> None:
    """The middleware closes its connections at exit. Nothing else holds a reference to it."""
    program = f"""
import gc, sys, weakref
from werkzeug.test import Client
from wattfare_mw import WattfareMiddleware

def app(environ, start_response):
    raise AssertionError

options = dict(resolve_user=lambda r: "u", secret_key={SECRET_KEY!r}, base_url={fake.url!r})
forgotten = weakref.ref(WattfareMiddleware(app, **options))
gc.collect()
assert forgotten() is None
middleware = WattfareMiddleware(app, **options)
assert Client(middleware).post({TOKEN!r}).status_code == 200
real = middleware._client._runner.transport.close
middleware._client._runner.transport.close = lambda: (real(), print("closed"))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
