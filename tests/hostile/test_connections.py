"""Before a client is authenticated, what it sends is limited in size, time and number."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.drivers import INFERENCE, asgi_app
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.servers import uvicorn_server
from support.service import Service, run_service
from support.sockets import address_of, connect, database_in, head_of, rest, served
from support.victim import Memory

from wattfare_mw import WattfareMiddleware, receiving
from wattfare_mw.service import sockets

MB = 10**6


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, watch: Any) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("alone")) as running, watch(running):
        yield running


ENDLESS = {
    "a header": (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: ", b"b" * MB),
    "a name of a header": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"b" * MB),
    "headers": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n" * (MB // 6)),
    "a path": (b"GET /", b"b" * MB),
    "empty lines": (b"", b"\r\n" * (MB // 2)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_head_is_cut_off(alone: Service, kind: str) -> None:
    start, more = ENDLESS[kind]
    memory = Memory(alone.process.pid)
    client = connect(address_of(alone.url))
    sent = 0
    with suppress(OSError):
        client.sendall(start)
        for _ in range(60):
            client.sendall(more)
            sent += len(more)
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = rest(client)
    assert memory.grown() < 20 * MB
    if kind == "empty lines":  # which belong to no request
        assert answer.startswith(b"HTTP/1.1 200 ")
    else:
        assert sent < 20 * MB, "the server must not read more than the system's buffers hold"
        assert not answer or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost:"])
def test_slow_head_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(sockets, "HEAD_SECONDS", 0.1)
    with served(tmp_path) as address:
        client = connect(address)
        client.sendall(sent)
        answer = rest(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"invalid_request"' in answer
        # A second request on the connection gets the same time.
        client = connect(address)
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost:")
        assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_head_within_the_limit_passes_in_pieces_of_any_size(tmp_path: Path) -> None:
    head = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: %s\r\n\r\n" % (b"b" * 60_000)
    with served(tmp_path) as address:
        client = connect(address)
        for start in range(0, len(head), 7_000):
            client.sendall(head[start : start + 7_000])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(head.replace(b"x-a: ", b"x-a: " + b"b" * 10_000))
        assert rest(client).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def test_idle_connection_is_closed(tmp_path: Path) -> None:
    with served(tmp_path, timeout_keep_alive=1) as address:
        client = connect(address)
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert rest(client) == b""


SMALL, LARGE = 1000, 10 * MB


@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_slow_body_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Any, length: int
) -> None:
    """The client either sends nothing or a byte now and then."""
    monkeypatch.setattr(receiving, "BODY_SECONDS", 0.5)
    with served(tmp_path) as (host, port):
        service = Service(f"http://{host}:{port}", database_in(tmp_path), process=None)  # type: ignore[arg-type]
        with watch(service), service.app() as app:
            app.connect()
            head = head_of("/api/v1/chat/completions", app.paid_by("u1"), length)
            silent, slow = connect((host, port)), connect((host, port))
            silent.sendall(head + b"{")
            slow.sendall(head)
            slow.settimeout(0.02)
            answer = b""
            while not answer:
                with suppress(TimeoutError):
                    answer = slow.recv(65536)
                with suppress(ConnectionError):
                    slow.sendall(b" ")
            slow.close()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert silent.recv(65536).startswith(b"HTTP/1.1 408 ")
            silent.close()


def test_body_that_stalls_after_a_fast_start_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would hold its memory for half an hour. A steadily slow body may take its
    time."""
    monkeypatch.setattr(receiving, "BODY_SECONDS", 0.5)
    with served(tmp_path) as (host, port):
        service = Service(f"http://{host}:{port}", database_in(tmp_path), process=None)  # type: ignore[arg-type]
        with service.app() as app:
            app.connect()
            head = head_of("/api/v1/chat/completions", app.paid_by("u1"), LARGE)
            fast, steady = connect((host, port)), connect((host, port))
            fast.sendall(head + b" " * (LARGE - 1))
            steady.sendall(head)
            answered = threading.Event()

            def send_steadily() -> None:
                while not answered.is_set():
                    steady.sendall(b" " * 10_000)
                    answered.wait(0.02)

            thread = threading.Thread(target=send_steadily)
            thread.start()
            try:
                assert fast.recv(65536).startswith(b"HTTP/1.1 408 ")
                steady.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    steady.recv(1)
            finally:
                answered.set()
                thread.join()
                fast.close()
                steady.close()


def test_app_does_not_wait_for_a_stalled_body(
    fake: FakeWattfare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "BODY_SECONDS", 0.2)
    app = WattfareMiddleware(
        asgi_app,
        resolve_user=lambda request: request.headers.get("x-me"),
        secret_key=SECRET_KEY,
        base_url=fake.url,
        allow_grants=True,
    )
    with uvicorn_server(app) as address:
        for length in (SMALL, LARGE):
            client = connect(address)
            client.sendall(head_of(INFERENCE, {"x-me": "mallory"}, length) + b"{")
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
            client.close()
        # The payer is checked before any of the body is read.
        for headers, status in (({"x-wattfare-grant": "gt 1"}, 402), ({}, 401)):
            client = connect(address)
            client.sendall(head_of(INFERENCE, headers, LARGE))
            assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)
            client.close()
    assert not fake.exchanges


def test_oldest_idle_connection_is_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_CONNECTIONS", 10)
    with served(tmp_path) as address:
        clients = [connect(address) for _ in range(10)]
        busy = clients[0]
        busy.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")  # it is now the newest idle connection
        newcomer = connect(address)
        assert clients[1].recv(1) == b""
        newcomer.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert newcomer.recv(65536).startswith(b"HTTP/1.1 200 ")
        busy.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")
        for client in [*clients, newcomer]:
            client.close()


async def test_address_with_the_most_idle_connections_loses_one() -> None:
    closed: list[str] = []

    class Connection:
        def __init__(self, name: str) -> None:
            self.name = name

        def close_idle(self) -> None:
            closed.append(self.name)

    idle = sockets._IdleConnections()
    idle.close_one()
    many: list[Any] = [Connection(f"a{number}") for number in range(3)]
    idle.add("b", few := Connection("b0"))  # type: ignore[arg-type]
    for connection in many:
        idle.add("a", connection)
    idle.close_one()
    idle.discard("a", many[0])
    idle.close_one()
    for connection in many[1:]:
        idle.discard("a", connection)
    idle.close_one()
    assert closed == ["a0", "a1", few.name]
    await asyncio.sleep(0)
