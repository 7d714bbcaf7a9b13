"""Extra bytes around requests, pipelined requests, and unread answers do not hold the process or
its memory."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.http_client import fetch, http_client
from support.patience import PATIENCE
from support.service import Service, environment, run_service
from support.sockets import address_of, connect, head_of, rest, served
from support.victim import MB, Memory

from wattfare_mw.service import sockets

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
OPENAPI = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
#: A POST that is answered with 401 before its body arrives.
UNPAID = head_of("/api/v1/chat/completions", {})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, watch: Any) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("alone")) as running, watch(running):
        yield running


FLOODS = {
    "trailers": (UNPAID + b"0\r\n", b"a: b\r\n" * (MB // 6)),
    "a trailer": (UNPAID + b"0\r\na: ", b"b" * MB),
    "chunks of one byte": (UNPAID, b"1\r\nx\r\n" * (MB // 6)),
    "an extension of a chunk": (UNPAID + b"1;", b"x" * MB),
    "a body without end": (head_of("/api/v1/chat/completions", {}, 10**15), b"b" * MB),
    "requests ahead of their turn": (b"", HEALTH * (MB // len(HEALTH))),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_before_authentication_is_bounded(alone: Service, kind: str) -> None:
    start, more = FLOODS[kind]
    memory = Memory(alone.process.pid)
    clients = [connect(address_of(alone.url)) for _ in range(5)]
    for client in clients:
        client.sendall(start)
        client.settimeout(0.1)  # leave most of the machine to the victim
    for _ in range(40):
        for client in clients:
            with suppress(OSError):
                client.send(more)
    for client in clients:
        client.close()
    assert memory.grown() < 30 * MB


@pytest.mark.parametrize("kind", ["trailers", "a trailer", "chunks of one byte"])
def test_bytes_around_a_body_are_limited(alone: Service, kind: str) -> None:
    _, more = FLOODS[kind]
    begin = {"trailers": b"1\r\n{\r\n0\r\n", "a trailer": b"1\r\n{\r\n0\r\na: "}.get(kind, b"")
    with alone.app() as app:
        app.connect()
        memory = Memory(alone.process.pid)
        client = connect(address_of(alone.url))
        client.sendall(head_of("/api/v1/chat/completions", app.paid_by("u1")) + begin)
        sent = 0
        with suppress(OSError):
            for _ in range(60):
                client.sendall(more)
                sent += len(more)
        assert sent < 20 * MB, "the server must not read more than the system's buffers hold"
        assert rest(client)[:13] in (b"", b"HTTP/1.1 400 ")
        assert memory.grown() < 20 * MB


def test_body_in_small_chunks_with_a_trailer_passes(alone: Service) -> None:
    with alone.app() as app:
        app.connect()
        body = json.dumps(
            {"model": "wattfare/echo", "messages": [{"role": "user", "content": "hi " * 20_000}]}
        ).encode()
        pieces = [body[start : start + 64] for start in range(0, len(body), 64)]
        headers = {**app.paid_by("u1"), "content-type": "application/json"}
        answer = app.http.post("/chat/completions", content=iter(pieces), headers=headers)
        assert answer.status_code == 200, answer.text

        client = connect(address_of(alone.url))
        chunked = b"2\r\n{}\r\n0\r\nx-checksum: 1\r\n\r\n"
        client.sendall(head_of("/api/v1/sessions", app.auth) + chunked + LAST)
        answers = rest(client)
        assert answers.startswith(b"HTTP/1.1 400 "), "it names no user"
        assert b"HTTP/1.1 200 " in answers


def test_trailers_are_ignored(alone: Service) -> None:
    client = connect(address_of(alone.url))
    chunked = b"2\r\n{}\r\n0\r\nx-request-id: trailing\r\n\r\n"
    client.sendall(head_of("/api/v1/sessions", {}) + chunked + LAST)
    answers = rest(client)
    assert answers.startswith(b"HTTP/1.1 401 ")
    assert b"trailing" not in answers


def test_pipelined_requests_are_answered_in_order(alone: Service) -> None:
    client = connect(address_of(alone.url))
    client.sendall(HEALTH + b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" + LAST)
    assert re.findall(rb"HTTP/1.1 (\d+)", rest(client)) == [b"200", b"404", b"200"]


@pytest.mark.parametrize("size", [1000, 100_000, 20 * MB])
def test_client_that_sends_its_whole_body_first_gets_its_refusal(alone: Service, size: int) -> None:
    with http_client() as http:
        for _ in range(3):
            answer = http.post(f"{alone.api}/chat/completions", content=b" " * size)
            assert answer.status_code == 401


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@LOOPS
def test_refused_request_does_not_wait_for_the_rest_of_its_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setattr(sockets, "UNREAD_SECONDS", 0.1)
    with served(tmp_path, loop=loop) as address:
        client = connect(address)
        client.sendall(head_of("/api/v1/sessions", {}, 1000) + b"{")
        assert rest(client).startswith(b"HTTP/1.1 401 ")


def test_bytes_between_requests_do_not_keep_a_connection_open(tmp_path: Path) -> None:
    with served(tmp_path, timeout_keep_alive=1) as address:
        client = connect(address)
        client.sendall(HEALTH)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"\r\n")
        assert rest(client) == b""


@LOOPS
def test_connection_of_a_client_that_does_not_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """A client that reads slowly still gets the whole answer."""
    timed_out = sockets._SendWait.timed_out
    aborted = threading.Event()

    def noted(wait: sockets._SendWait) -> None:
        timed_out(wait)
        if wait._transport.is_closing():
            aborted.set()

    monkeypatch.setattr(sockets._SendWait, "timed_out", noted)
    monkeypatch.setattr(sockets, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(sockets, "MAX_PIPELINED", 10_000)
    with served(tmp_path, loop=loop) as address:
        deaf, slow = connect(address), connect(address)
        for client in deaf, slow:
            client.sendall(OPENAPI * 1000)
        received = 0
        while received < 15 * MB:
            received += len(slow.recv(100_000))
        assert aborted.wait(PATIENCE)
        slow.close()
        # It gets no more than the system's buffers hold.
        assert len(rest(deaf)) < 15 * MB


def test_more_connections_than_file_descriptors_do_not_stop_the_service(
    tmp_path: Path, watch: Any
) -> None:
    """Other users can still connect."""
    with run_service(tmp_path) as service, watch(service):
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (256, 256))  # type: ignore[attr-defined]
        clients: list[socket.socket] = []
        for _ in range(10):
            clients += [connect(address_of(service.url)) for _ in range(40)]
            assert fetch(f"{service.url}/healthz").status_code == 200
        for client in clients:
            client.close()


def test_service_raises_its_limit_of_file_descriptors(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [sys.executable, "-m", "wattfare_mw.cli", "serve", "--port", "0"]
    command += ["--database", f"sqlite:///{tmp_path / 'wattfare.db'}"]
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -Sn 300 && exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert b"listening on" in process.stdout.readline()
        soft, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)  # type: ignore[attr-defined]
        process.terminate()
    assert soft >= min(hard, 2 * sockets.MAX_CONNECTIONS)
