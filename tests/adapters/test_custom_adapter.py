"""The adapter of docs/custom-adapter.md, in an aiohttp.web app on a real socket."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.drivers import INFERENCE, JSON, STATUS, body_of
from support.fake_wattfare import DONE, SECRET_KEY, FakeWattfare, held, held_stream, word
from support.http_client import fetch
from support.servers import Address, Visitor, aiohttp_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_adapter_aiohttp.py"
STREAM = body_of(stream=True)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the example."""
    monkeypatch.setenv("WATTFARE_SECRET_KEY", SECRET_KEY)
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, EXAMPLE.stem, module)
    spec.loader.exec_module(module)
    return module


Serve = Callable[..., Address]


@pytest.fixture
def serve(adapter: Any, at_fake: dict[str, Any]) -> Iterator[Serve]:
    """Serves an app with the adapter; returns its address."""
    running: list[Any] = []

    def start(app: web.Application | None = None, **options: Any) -> Address:
        app = web.Application() if app is None else app
        adapter.WattfareAiohttp(
            app, **{"resolve_user": lambda request: "ann", **at_fake, **options}
        )
        running.append(aiohttp_server(app))
        return running[-1].__enter__()

    yield start
    for server in running:
        server.__exit__(None, None, None)


def url(address: Address, path: str) -> str:
    return f"http://{address[0]}:{address[1]}{path}"


@pytest.mark.parametrize("body", [body_of(), STREAM])
def test_client_disconnects_before_the_first_byte(
    serve: Serve, fake: FakeWattfare, body: bytes
) -> None:
    fake.script = held
    visitor = Visitor(serve())
    visitor.ask("POST", INFERENCE, JSON, body)
    exchange = fake.next()
    visitor.leave()
    exchange.wait_gone()


def test_client_disconnects_within_a_stream(serve: Serve, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = Visitor(serve())
    visitor.ask("POST", INFERENCE, JSON, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one "))
    visitor.wait_for(b"one ")
    visitor.leave()
    exchange.wait_gone()


def test_client_disconnects_within_its_body(serve: Serve, fake: FakeWattfare) -> None:
    address = serve()
    visitor = Visitor(address)
    visitor.ask("POST", INFERENCE, {**JSON, "content-length": "100"}, b"{")
    visitor.leave()
    assert fetch(url(address, STATUS)).status_code == 200
    fake.next("/status")
    assert len(fake.exchanges) == 1


def test_stream_is_forwarded_event_by_event(serve: Serve, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = Visitor(serve())
    visitor.ask("POST", INFERENCE, {**JSON, "connection": "close"}, STREAM)
    exchange = fake.next()
    for text in ("one ", "two"):
        exchange.chunk(word(text))
        visitor.wait_for(text.encode())
    exchange.chunk(DONE)
    exchange.end()
    assert b"[DONE]" in visitor.rest()


def test_silent_stream_gets_comments(serve: Serve, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = Visitor(serve(heartbeat=0.01))
    visitor.ask("POST", INFERENCE, JSON, STREAM)
    visitor.wait_for(b": wattfare")
    visitor.leave()
    fake.next().wait_gone()


def test_too_large_body_is_refused(serve: Serve) -> None:
    address = serve(max_body_bytes=1000)
    content = [b"x" * 600, b"x" * 600]  # without a declared length
    answer = fetch(url(address, INFERENCE), "POST", content=iter(content), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "invalid_request")


def test_aiohttp_handles_the_errors_of_resolve_user(serve: Serve) -> None:
    async def refuse(request: web.Request) -> str:
        assert isinstance(request, web.Request)
        raise web.HTTPForbidden(text="Banned.")

    answer = fetch(url(serve(resolve_user=refuse), STATUS))
    assert (answer.status_code, answer.text) == (403, "Banned.")


def test_path_without_a_route_is_not_found(serve: Serve) -> None:
    async def missing(request: web.Request) -> web.Response:
        raise web.HTTPNotFound(text="No such file.")

    app = web.Application()
    app.router.add_get("/api/wattfare/files", missing)
    address = serve(app)
    answer = fetch(url(address, "/api/wattfare/embeddings"))
    assert answer.status_code == 404
    assert "is not supported" in answer.json()["error"]["message"]
    assert fetch(url(address, "/api/wattfare/files")).text == "No such file."
    assert fetch(url(address, "/elsewhere")).text == "404: Not Found"


def test_wrong_method_and_head_request(serve: Serve, fake: FakeWattfare) -> None:
    address = serve()
    refused = fetch(url(address, STATUS), "PUT")
    assert (refused.status_code, refused.json()["error"]["code"]) == (405, "invalid_request")
    head = fetch(url(address, STATUS), "HEAD")
    whole = fetch(url(address, STATUS))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


def test_get_user_in_a_sub_app(adapter: Any, serve: Serve) -> None:
    async def view(request: web.Request) -> web.Response:
        return web.Response(text=(await adapter.get_user(request)).id)

    inner, app = web.Application(), web.Application()
    inner.router.add_get("/", view)
    app.add_subapp("/inner", inner)
    assert fetch(url(serve(app), "/inner/")).text == "ann"
