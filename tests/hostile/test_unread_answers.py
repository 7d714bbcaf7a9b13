"""An answer that its client does not read counts as a call at once while it is in memory."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.drivers import INFERENCE, asgi_app
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.fake_wattfare import Exchange as FakeExchange
from support.http_client import http_client
from support.patience import PATIENCE
from support.servers import uvicorn_server
from support.service import App, chat_body, eventually, run_service
from support.sockets import address_of, connect, head_of
from support.upstream import Exchange, Upstream, completion_of
from support.victim import MB, Memory

from wattfare_mw import WattfareMiddleware

#: Far more than the system's buffers hold.
LARGE = json.dumps(completion_of("x" * 30 * MB)).encode()
BODY = json.dumps(chat_body(model="fake/model", max_tokens=5)).encode()


@pytest.fixture
def app(tmp_path: Path, _upstream: Upstream, watch: Any) -> Iterator[App]:
    options = ("--upstream", _upstream.url, "--max-calls-per-user", "2")
    with (
        run_service(tmp_path, *options) as running,
        watch(running, "fake/model"),
        running.app() as app,
    ):
        app.connect(monthlyUsd=100)
        yield app


def ask(address: Any, path: str, headers: dict[str, str]) -> socket.socket:
    client = connect(address)
    client.sendall(head_of(path, headers, len(BODY)) + BODY)
    assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    return client


def test_service_counts_an_unread_answer_as_a_call_at_once(app: App, upstream: Upstream) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.answer(LARGE)

    upstream.script = answer
    address, path = address_of(app.service.url), "/api/v1/chat/completions"
    clients = [ask(address, path, app.paid_by("u1")) for _ in range(2)]
    assert app.chat(model="fake/model", max_tokens=5).status_code == 429
    for client in clients:
        client.close()
    upstream.reset()
    eventually(lambda: app.chat(model="fake/model", max_tokens=5).status_code == 200)


def test_middleware_counts_an_unread_answer_as_a_call_at_once(fake: FakeWattfare) -> None:
    def answer(exchange: FakeExchange) -> None:
        exchange.answer(LARGE)

    fake.script = answer
    app = WattfareMiddleware(
        asgi_app,
        resolve_user=lambda request: request.headers.get("x-me"),
        secret_key=SECRET_KEY,
        base_url=fake.url,
        max_calls_per_user=1,
    )
    with (
        uvicorn_server(app) as (host, port),
        http_client() as http,
    ):
        url, me = f"http://{host}:{port}{INFERENCE}", {"x-me": "u1"}

        def status() -> int:
            return http.post(url, json=json.loads(BODY), headers=me, timeout=PATIENCE).status_code

        client = ask((host, port), INFERENCE, me)
        assert status() == 429
        client.close()
        eventually(lambda: status() == 200)


def test_unread_stream_is_not_buffered_in_memory(app: App, upstream: Upstream) -> None:
    def flood(exchange: Exchange) -> None:
        exchange.start_stream()
        while True:  # until the client disconnects
            exchange.word("x" * 10_000)

    upstream.script = flood
    memory = Memory(app.service.process.pid)
    body = json.dumps(
        chat_body("hi", model="fake/tiny", stream=True, max_tokens=5_000_000)
    ).encode()
    client = connect(address_of(app.service.url))
    client.sendall(head_of("/api/v1/chat/completions", app.paid_by("u1"), len(body)) + body)
    assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    # Backpressure reaches the upstream: it cannot send more, and memory does not grow.
    before = -1

    def is_held() -> bool:
        nonlocal before
        last, before = before, memory.grown()
        return last == before

    eventually(is_held)
    assert memory.grown() < 30 * MB
    client.close()
    upstream.wait_gone()
