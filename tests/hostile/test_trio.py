"""An app on trio: the middleware forwards the app's requests, and its own paths answer that they
need asyncio."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import wattfare_litestar
import wattfare_starlette
from litestar import Litestar, get
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from support.drivers import INFERENCE, JSON, MODELS, STATUS, TOKEN, body_of
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.servers import Visitor, hypercorn_trio_server

from wattfare_mw import AsyncWattfare, WattfareError, WattfareMiddleware

OURS = [("POST", TOKEN), ("POST", INFERENCE), ("GET", STATUS), ("GET", MODELS)]


async def page(request: Request) -> Response:
    await trio.lowlevel.checkpoint()  # fails on any other loop
    return PlainTextResponse("the page")


async def budget(request: Request) -> Response:
    user = await wattfare_starlette.get_user(request)
    return PlainTextResponse(user.id)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


def starlette_app(phases: list[str]) -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        phases.append("startup")
        yield
        phases.append("shutdown")

    routes = [Route("/page", page), Route("/budget", budget), WebSocketRoute("/ws", echo)]
    return Starlette(routes=routes, lifespan=lifespan)


def neutral(phases: list[str], options: dict[str, Any]) -> Any:
    return WattfareMiddleware(starlette_app(phases), **options)


def starlette(phases: list[str], options: dict[str, Any]) -> Any:
    app = starlette_app(phases)
    wattfare_starlette.add_wattfare(app, **options)
    return app


def litestar(phases: list[str], options: dict[str, Any]) -> Any:
    @get("/page", sync_to_thread=False)
    def litestar_page() -> str:
        return "the page"

    return Litestar(
        [litestar_page],
        plugins=[wattfare_litestar.WattfarePlugin(**options)],
        on_startup=[lambda: phases.append("startup")],
        on_shutdown=[lambda: phases.append("shutdown")],
        logging_config=None,
    )


@pytest.fixture(params=[neutral, starlette, litestar])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


async def async_user(_request: Any) -> str:
    return "user_1"


@pytest.fixture(params=[lambda _request: "user_1", async_user], ids=["sync", "async"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"resolve_user": request.param, "secret_key": SECRET_KEY, "base_url": "http://[::1]:9"}


def test_lifespan_and_requests_of_the_app_pass(make: Any, options: dict[str, Any]) -> None:
    phases: list[str] = []
    with TestClient(make(phases, options), backend="trio") as client:
        assert client.get("/page").text == "the page"
        assert client.get("/nothing").status_code == 404
    assert phases == ["startup", "shutdown"]


def test_websocket_passes(options: dict[str, Any]) -> None:
    client = TestClient(neutral([], options), backend="trio")
    with client.websocket_connect("/ws") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


@pytest.mark.parametrize("allow_grants", [False, True])
def test_wattfare_paths_say_that_they_need_asyncio(
    make: Any,
    options: dict[str, Any],
    allow_grants: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = {**JSON, "x-wattfare-grant": "g"} if allow_grants else JSON
    options["allow_grants"] = allow_grants
    with TestClient(make([], options), backend="trio") as client:
        for method, path in OURS:
            caplog.clear()
            answer = client.request(method, path, headers=headers, content=body_of())
            assert answer.status_code == 501
            assert "asyncio" in answer.json()["error"]["message"]
            assert answer.headers["x-request-id"]
            (line,) = [line for line in caplog.records if line.name == "wattfare_mw"]
            assert line.levelno == logging.WARNING
            assert "asyncio" in line.getMessage()
            assert line.exc_info is None
        # Checks that need no service still refuse the request here.
        assert client.put(TOKEN).status_code == 405


def test_view_that_uses_the_user_says_that_it_needs_asyncio(options: dict[str, Any]) -> None:
    with TestClient(starlette([], options), backend="trio") as client:
        answer = client.get("/budget")
    assert answer.status_code == 501
    assert "asyncio" in answer.json()["error"]["message"]


@pytest.mark.parametrize("library", ["httpx", "httpx2", "aiohttp"])
def test_client_says_that_it_needs_asyncio(library: str, fake: FakeWattfare) -> None:
    module = pytest.importorskip(library)
    kind = module.ClientSession if library == "aiohttp" else module.AsyncClient

    async def main() -> None:
        async with AsyncWattfare(SECRET_KEY, base_url=fake.url, http_client=kind) as client:
            user = client.user("u")
            with pytest.raises(WattfareError, match="asyncio"):
                await user.status()
            with pytest.raises(WattfareError, match="asyncio"):
                await user.model("m").generate("hi")
            with pytest.raises(WattfareError, match="asyncio"):
                async with user.model("m").stream("hi"):
                    pass

    trio.run(main)
    assert not fake.exchanges


def test_app_runs_on_a_real_trio_server(fake: FakeWattfare) -> None:
    phases: list[str] = []
    options = {"resolve_user": async_user, "secret_key": SECRET_KEY, "base_url": fake.url}
    with hypercorn_trio_server(neutral(phases, options)) as address:
        for method, path, status, part in (
            ("GET", "/page", b"200", b"the page"),
            ("POST", INFERENCE, b"501", b"asyncio"),
            ("GET", "/page", b"200", b"the page"),
        ):
            visitor = Visitor(address)
            visitor.ask(method, path, {**JSON, "connection": "close"}, body_of())
            answer = visitor.rest()
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert part in answer
    assert phases == ["startup", "shutdown"]
