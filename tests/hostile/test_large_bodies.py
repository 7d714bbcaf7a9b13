"""No body of one client stalls the service for another, or fills its memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import uvicorn_process
from support.service import PATIENCE, App, Service, run_cli, run_service
from support.upstream import Exchange, Upstream, good
from support.victim import QUESTION, Memory, Victim

MB = 10**6
LONGEST_GAP = 1.0
MOST_MEMORY = 200 * MB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def service(tmp_path: Path, upstream: Upstream) -> Iterator[Service]:
    with run_service(tmp_path, "--upstream", upstream.url) as running:
        yield running


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    with service.app() as app:
        app.connect("victim", monthlyUsd=100)
        app.connect("rich")
        yield app


def around(inner: bytes, text: str = "x") -> bytes:
    fields = {"model": "fake/model", "messages": [{"role": "user", "content": text}]}
    return json.dumps(fields, ensure_ascii=False)[:-1].encode() + b"," + inner + b"}"


def tool(value: bytes) -> bytes:
    return around(b'"tools":[{"type":"function","function":{"a":%s}}]' % value)


def text(content: str) -> bytes:
    return around(b'"n":1', content)


BODIES: dict[str, Callable[[], bytes]] = {
    "nested 300 deep": lambda: tool(b"[" * 300 + b"1," * 100_000 + b"1" + b"]" * 300),
    "nested 800 deep": lambda: tool(b"[" * 800 + b"1," * 150_000 + b"1" + b"]" * 800),
    "nested 972 deep": lambda: tool(b"[" * 972 + b"]" * 972),
    "nested a million deep": lambda: tool(b"[" * 10**6 + b"]" * 10**6),
    "objects nested 60 deep": lambda: tool(b'{"a":' * 60 + b"1" + b"}" * 60),
    "60 deep with many values": lambda: tool(b"[" * 60 + b"1," * 99_000 + b"1" + b"]" * 60),
    "60 deep with too many values": lambda: tool(b"[" * 60 + b"1," * (9 * MB) + b"1" + b"]" * 60),
    "many small objects": lambda: tool(b"[" + b'{"a":1},' * (2 * MB) + b"1]"),
    "many messages": lambda: json.dumps(
        {"model": "fake/model", "messages": [{"role": "user", "content": "a"}] * 45_000}
    ).encode(),
    "a long text": lambda: text("word " * (3 * MB)),
    "a long text with one wide character": lambda: text("word " * (3 * MB) + "😀"),
    "every character there is": lambda: text("".join(map(chr, range(0x20, 0xD800))) * 60),
    "quotes": lambda: text('"' * (9 * MB)),
    "escapes": lambda: around(b'"n":1', "\n" * (9 * MB)),
    "combining marks": lambda: text("a" + "\u0301\u0323" * (2 * MB)),
    "many characters in tools": lambda: tool(json.dumps("é" * (3 * MB)).encode()),
    "white space": lambda: tool(b" " * (19 * MB) + b"1"),
    "one number": lambda: tool(b"1" * (19 * MB)),
}


@pytest.mark.parametrize("user", ["nobudget", "rich"])
def test_a_body_does_not_stall_the_others(
    service: Service, app: App, upstream: Upstream, user: str
) -> None:
    bodies = {name: make() for name, make in BODIES.items()}
    assert max(map(len, bodies.values())) > 15 * MB

    def answer(exchange: Exchange) -> None:
        if QUESTION.encode() in exchange.body[:1000]:
            victim.words(exchange)
        else:
            good(exchange)

    upstream.script = answer
    statuses: dict[str, Any] = {}
    gaps: dict[str, float] = {}
    grown: dict[str, int] = {}
    http = httpx.Client(base_url=service.api, timeout=PATIENCE, trust_env=False)
    victim = Victim(lambda: stream(http, app, "victim"))
    with http, victim:
        memory = Memory(service.process.pid)
        for name, body in bodies.items():
            headers = {**app.paid_by(user), "content-type": "application/json"}
            victim.forget()
            memory.mark()
            response = app.http.post("/chat/completions", content=body, headers=headers)
            gaps[name] = victim.longest_gap
            statuses[name] = response.status_code
            assert response.status_code < 500, (name, response.text)
            grown[name] = memory.grown()
    assert victim.text.endswith(b"data: [DONE]\n\n"), statuses
    assert max(gaps.values()) < LONGEST_GAP, gaps
    assert max(grown.values()) < MOST_MEMORY, grown
    if user == "nobudget":
        assert {status for name, status in statuses.items() if len(bodies[name]) > 65536} == {402}
    assert not [line for line in service.log if "Traceback" in line]
    assert "holds" in run_cli("ledger", "verify", "--database", service.database).stdout


def stream(http: httpx.Client, app: App, user: str) -> httpx.Response:
    body = {
        "model": "fake/model",
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    request = http.build_request("POST", "/chat/completions", json=body, headers=app.paid_by(user))
    response = http.send(request, stream=True)
    assert response.status_code == 200
    return response


def test_unfinished_bodies_take_a_bounded_memory(service: Service, app: App) -> None:
    memory = Memory(service.process.pid)
    clients = []
    for _ in range(30):
        client = start_body(service.url, "/api/v1/chat/completions", app.paid_by("rich"))
        clients.append(client)
    answers = [client for client in clients if client is not None]
    assert memory.grown() < MOST_MEMORY
    # Small requests are served meanwhile, of this user and of others.
    assert app.chat(model="fake/model", max_tokens=5, user="rich").status_code == 200
    for sock in answers:
        sock.close()


def start_body(url: str, path: str, headers: dict[str, str]) -> Any:
    """Send the head and 19 of 20 MB of a body, as far as the server takes it."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=2)
    fields = {"host": "x", "content-type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"POST {path} HTTP/1.1\r\n{head}content-length: {20 * MB}\r\n\r\n"
    sock.sendall(head.encode())
    try:
        for _ in range(19):
            sock.sendall(b" " * MB)
    except OSError:
        sock.close()
        return None
    return sock


INFERENCE = "/api/wattfare/chat/completions"


@pytest.fixture
def middleware(service: Service, app: App) -> Iterator[tuple[str, int]]:
    """An app with the middleware, which allows some models; and the id of its process."""
    env = {"WATTFARE_SECRET_KEY": app.keys.secret_key, "WATTFARE_BASE_URL": service.url}
    with uvicorn_process("support.middleware_app:guarded", env=env) as ((host, port), pid):
        yield f"http://{host}:{port}", pid


#: Each makes a check of the middleware look closely.
ESCAPED = {
    f"{name}, with an escape": lambda make=make: make()[:-1] + rb',"mod\u0065l":1}'
    for name, make in BODIES.items()
}


@pytest.mark.parametrize("user", ["nobudget", "rich"])
def test_a_body_does_not_stall_an_app(
    app: App, upstream: Upstream, middleware: tuple[str, int], user: str
) -> None:
    url, pid = middleware

    def answer(exchange: Exchange) -> None:
        if QUESTION.encode() in exchange.body[:1000]:
            victim.words(exchange)
        else:
            good(exchange)

    upstream.script = answer
    http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
    body = {
        "model": "fake/model",
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
    }

    def open_stream() -> httpx.Response:
        request = http.build_request("POST", INFERENCE, json=body, headers={"x-me": "victim"})
        return http.send(request, stream=True)

    gaps: dict[str, float] = {}
    grown: dict[str, int] = {}
    victim = Victim(open_stream)
    with http, victim, httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as other:
        memory = Memory(pid)
        for name, make in (BODIES | ESCAPED).items():
            content = make()
            victim.forget()
            memory.mark()
            headers = {"x-me": user, "content-type": "application/json"}
            response = other.post(INFERENCE, content=content, headers=headers)
            gaps[name] = victim.longest_gap
            assert response.status_code < 500, (name, response.text)
            grown[name] = memory.grown()
    assert victim.text.endswith(b"data: [DONE]\n\n")
    assert max(gaps.values()) < LONGEST_GAP, gaps
    assert max(grown.values()) < MOST_MEMORY, grown


def test_bodies_with_an_invalid_grant_take_a_bounded_memory(middleware: tuple[str, int]) -> None:
    url, pid = middleware
    memory = Memory(pid)
    headers = {"x-wattfare-grant": "gt_invalid"}
    clients = [start_body(url, INFERENCE, headers) for _ in range(30)]
    assert memory.grown() < MOST_MEMORY
    for client in clients:
        if client is not None:
            client.close()
