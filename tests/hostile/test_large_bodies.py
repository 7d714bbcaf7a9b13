"""A body of one client neither stalls the service for others nor fills its memory."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support import examples
from support.drivers import INFERENCE
from support.http_client import http_client
from support.servers import uvicorn_process
from support.service import App, Service, run_service
from support.upstream import Upstream
from support.victim import LONGEST_GAP, MB, MOST_MEMORY, Memory, Victim, victim_at

from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def app(attacked: Service, upstream: Upstream) -> Iterator[App]:
    with attacked.app() as app:
        app.connect("victim")
        app.connect("rich")
        yield app


def around(inner: bytes, text: str = "x") -> bytes:
    fields = {"model": "fake/model", "messages": [{"role": "user", "content": text}]}
    return json.dumps(fields, ensure_ascii=False)[:-1].encode() + b"," + inner + b"}"


def tool(value: bytes) -> bytes:
    return around(b'"tools":[{"type":"function","function":{"a":%s}}]' % value)


def schema(value: bytes) -> bytes:
    """The service takes any JSON here, so it must bound it and encode it again."""
    function = b'{"name":"f","parameters":{"a":%s}}' % value
    return around(b'"tools":[{"type":"function","function":%s}]' % function)


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
    "long integers": lambda: schema(b"[" + b",".join([b"9" * 4000] * 4700) + b"]"),
    "numbers near the limit of a double": lambda: schema(
        b"[" + b",".join([b"0.%se-300" % (b"1234567890" * 18)] * 90_000) + b"]"
    ),
    "numbers with large exponents": lambda: schema(b"[" + b"1E+307," * 95_000 + b"1]"),
    "a deep schema": lambda: schema(b'{"a":' * 57 + b'"a"' + b"}" * 57),
    "a long schema": lambda: schema(b"[" + b",".join([b'"\\n%s"' % (b"a" * 190)] * 98_000) + b"]"),
}
#: `make test` sends those of each kind that have cost the most. `make test-long` sends all.
COSTLY = {
    "nested 300 deep",
    "nested 972 deep",
    "60 deep with many values",
    "many small objects",
    "many messages",
    "every character there is",
    "long integers",
    "numbers with large exponents",
    "a long schema",
}
if examples.FACTOR <= 1:
    BODIES = {name: make for name, make in BODIES.items() if name in COSTLY}
    assert BODIES.keys() == COSTLY
#: Unfinished bodies at a time. Without a limit, they would take far more than ``MOST_MEMORY``.
UNFINISHED = 15 if examples.FACTOR <= 1 else 30
TOO_DEEP = [name for name in BODIES if name.startswith("nested")]


Post = Callable[[bytes], httpx.Response]


def attack(bodies: dict[str, Callable[[], bytes]], post: Post, victim: Victim, pid: int) -> Any:
    """Sends each of these bodies and returns the status of each answer. Checks that no body stalls
    the victim's stream or takes much memory of this process."""
    statuses: dict[str, int] = {}
    gaps: dict[str, float] = {}
    grown: dict[str, int] = {}
    for name, make in bodies.items():
        body = make()
        victim.forget()
        memory = Memory(pid)
        response = post(body)
        gaps[name], grown[name] = victim.longest_gap(), memory.grown()
        statuses[name] = response.status_code
        assert response.status_code < 500, (name, response.text)
    victim.check()
    assert max(gaps.values()) < LONGEST_GAP, gaps
    assert max(grown.values()) < MOST_MEMORY, grown
    return statuses


@pytest.mark.parametrize("user", ["nobudget", "rich"])
def test_large_body_does_not_stall_other_users(
    attacked: Service, app: App, victims: list[Victim], user: str, tmp_path: Path
) -> None:
    """Another process must not settle their calls either."""
    headers = {**app.paid_by(user), "content-type": "application/json"}

    def post(body: bytes) -> httpx.Response:
        return app.http.post("/chat/completions", content=body, headers=headers)

    with run_service(tmp_path, database=attacked.database):
        statuses = attack(BODIES, post, victims[0], attacked.process.pid)
    ended = read_database(attacked.database, lambda sql: {row["ended"] for row in rows_of(sql)})
    assert not ended & {"expired", "abandoned"}
    if user == "nobudget":  # a large body is not inspected before its payer is known
        small = {"nested 972 deep": 400}
        assert statuses == dict.fromkeys(BODIES, 402) | small
    else:
        assert {statuses[name] for name in TOO_DEEP} == {400}
    assert not [line for line in attacked.log if "Traceback" in line]


def test_unfinished_bodies_take_bounded_memory(attacked: Service, app: App) -> None:
    memory = Memory(attacked.process.pid)
    clients = [
        start_body(attacked.url, "/api/v1/chat/completions", app.paid_by("rich"))
        for _ in range(UNFINISHED)
    ]
    assert memory.grown() < MOST_MEMORY
    # Meanwhile, small requests of this user and of others are served.
    assert app.chat(model="fake/model", max_tokens=5, user="rich").status_code == 200
    for client in clients:
        if client is not None:
            client.close()


def start_body(url: str, path: str, headers: dict[str, str]) -> Any:
    """Sends the head and 19 of 20 MB of a body, as far as the server reads it."""
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


@pytest.fixture(scope="module")
def middleware(attacked: Service, victims: list[Victim]) -> Iterator[tuple[str, int]]:
    """An app whose middleware allows some models; yields it with its process id."""
    with attacked.app() as app:
        app.connect("victim")
        app.connect("rich")
        env = {"WATTFARE_SECRET_KEY": app.keys.secret_key, "WATTFARE_BASE_URL": attacked.url}
        with uvicorn_process("support.middleware_app:guarded", env=env) as ((host, port), pid):
            url = f"http://{host}:{port}"
            with victim_at(url + INFERENCE, {"x-me": "victim"}) as victim:
                victims.append(victim)
                yield url, pid
                victims.remove(victim)


#: Each body makes a check of the middleware look closely.
ESCAPED = {
    f"{name}, with an escape": lambda make=make: make()[:-1] + rb',"mod\u0065l":1}'
    for name, make in BODIES.items()
}


def test_large_body_does_not_stall_an_app(
    middleware: tuple[str, int], victims: list[Victim]
) -> None:
    url, pid = middleware
    headers = {"x-me": "rich", "content-type": "application/json"}
    with http_client(base_url=url) as http:

        def post(body: bytes) -> httpx.Response:
            return http.post(INFERENCE, content=body, headers=headers)

        statuses = attack(BODIES | ESCAPED, post, victims[-1], pid)
    assert {statuses[name] for name in TOO_DEEP} == {400}
    # The service may refuse other bodies before the middleware inspects them.
    assert {statuses[name] for name in ESCAPED} == {400}


def test_bodies_with_an_invalid_grant_take_bounded_memory(middleware: tuple[str, int]) -> None:
    url, pid = middleware
    memory = Memory(pid)
    headers = {"x-wattfare-grant": "gt_invalid"}
    clients = [start_body(url, INFERENCE, headers) for _ in range(UNFINISHED)]
    assert memory.grown() < MOST_MEMORY
    for client in clients:
        if client is not None:
            client.close()
