"""Long runs of one character, one header or one event take time in proportion to their length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.drivers import INFERENCE
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.fake_wattfare import Exchange as FakeExchange
from support.http_client import fetch
from support.servers import uvicorn_process
from support.service import Service, chat_body, run_service
from support.sockets import connect
from support.upstream import Exchange, Script, Upstream, completion_of
from support.victim import LONGEST_GAP, victim_at

from wattfare_mw import sse
from wattfare_mw.completions import ToolCalls
from wattfare_mw.errors import WattfareError
from wattfare_mw.headers import Headers
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.redaction import Redactor
from wattfare_mw.service.models.upstream_answers import Finishes, read_chunk

KEY = "sk-or-v1-" + "a1b2c3d4" * 8
#: The hash of each multiple of this number is 0.
MODULUS = 2**61 - 1


@pytest.fixture(scope="module")
def with_key(
    tmp_path_factory: pytest.TempPathFactory, _upstream: Upstream, watch: Any
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("with_key")
    options = ("--upstream", _upstream.url, "--user-ceiling-usd", "100")
    env = {"WATTFARE_UPSTREAM_KEY": KEY}
    with run_service(folder, *options, env=env) as running, watch(running, "fake/model"):
        yield running


@pytest.mark.parametrize("row", ["\\", "%25", "&#", "&#0", "\\u0", "s"])
def test_error_that_repeats_a_prompt_does_not_stall(
    with_key: Service, upstream: Upstream, row: str
) -> None:
    def repeat(exchange: Exchange) -> None:
        text = exchange.json["messages"][0]["content"]
        exchange.answer({"error": {"message": f"Invalid value: {text}"}}, status=400)

    upstream.script = repeat
    with with_key.app() as app:
        app.connect(monthlyUsd=100)
        answer = app.chat(row * 20_000, model="fake/model", max_tokens=5)
        assert answer.status_code == 400
        assert "Invalid value" in answer.text


def repeated_key(exchange: Exchange) -> None:
    exchange.answer(completion_of(f"{KEY} " + "s" * 8_000_000))


def flood_of_keys(exchange: Exchange) -> None:
    exchange.answer(completion_of(f"a{KEY[1:]} sk-" * 50_000))


def event_of_spaces(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.event(" " * 400_000 + "!")
    exchange.done()


@pytest.mark.parametrize("script", [repeated_key, flood_of_keys, event_of_spaces])
def test_answer_does_not_stall_other_users(
    with_key: Service, upstream: Upstream, script: Script
) -> None:
    upstream.script = script
    with with_key.app() as app:
        app.connect(monthlyUsd=100)
        stream = script is event_of_spaces
        answer = app.chat(model="fake/model", max_tokens=5, stream=stream)
        assert answer.status_code == 200, answer.text
        assert "a1b2c3d4" not in answer.text


def test_repeated_header_does_not_stall_an_app(fake: FakeWattfare) -> None:
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    with uvicorn_process("support.middleware_app:guarded", env=env) as (address, _):
        url = f"http://{address[0]}:{address[1]}{INFERENCE}"
        with victim_at(url, {"x-me": "victim"}) as victim:
            client = connect(address)
            line = b"GET /api/wattfare/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            client.sendall(line + b"cookie: a=b\r\n" * 80_000 + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
            client.close()
            assert victim.longest_gap() < LONGEST_GAP


def test_events_that_may_be_errors_do_not_stall_an_app(fake: FakeWattfare) -> None:
    def answer(exchange: FakeExchange) -> None:
        exchange.start_stream()
        for _ in range(8):
            exchange.chunk(b'data: {"error":null}\n\n' * 20_000)
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    fake.script = answer
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    with uvicorn_process("support.middleware_app:guarded", env=env) as ((host, port), _):
        url = f"http://{host}:{port}{INFERENCE}"
        with victim_at(url, {"x-me": "victim"}) as victim:
            body = chat_body(model="fake/model", stream=True)
            listing = fetch(url, "POST", json=body, headers={"x-me": "u"})
            assert listing.text.endswith("[DONE]\n\n")
            assert victim.longest_gap() < LONGEST_GAP


def headers(times: int) -> Callable[[], object]:
    raw = [(b"cookie", b"a=b")] * times
    return lambda: Headers.of_scope(raw).fields


def marks(times: int) -> Callable[[], object]:
    block = b'data: "error"\n\n' * times
    return lambda: list(sse.holding(block, b"[DONE]", b'"error"'))


def finishes(times: int) -> Callable[[], object]:
    choice = b'{"index":%d,"finish_reason":"stop"}'
    choices = b",".join(choice % (MODULUS * number) for number in range(times))
    return lambda: Finishes().record(b'{"choices":[%s]}' % choices)


def calls(times: int) -> Callable[[], object]:
    def add() -> None:
        known = ToolCalls()
        for number in range(times):
            known.add({"index": MODULUS * number, "id": f"c{number}", "function": {"name": "f"}})

    return add


def backslashes(times: int) -> Callable[[], object]:
    data = b'{"a":"%s"}' % (b"\\" * times + b" " + KEY.encode())
    return lambda: Redactor(KEY).answer(data)


def spaces(times: int) -> Callable[[], object]:
    def read() -> None:
        with pytest.raises(WattfareError):
            read_chunk(b" " * times + b"!", Meter(None, 1), Credential(None))

    return read


def keys(times: int) -> Callable[[], object]:
    return lambda: Redactor(KEY).answer(f"{KEY} sk-".encode() * times)


@pytest.mark.parametrize(
    ("row", "times"),
    [
        (headers, 160_000),
        (marks, 40_000),
        (finishes, 40_000),
        (calls, 40_000),
        (backslashes, 160_000),
        (spaces, 160_000),
        (keys, 160_000),
    ],
)
def test_time_grows_linearly_with_length(
    row: Callable[[int], Callable[[], object]], times: int
) -> None:
    run = row(times)
    began = time.thread_time()
    run()
    # With quadratic growth, each would take at least twice as long.
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("way", ["\\s", "\\\\\\s", "\\\\u0073", "\\u0073", "%73", "s"])
def test_escaped_key_is_removed(way: str) -> None:
    for start in ("", "\\", "a\\\\", "%"):
        escaped = f"{start}{way}{KEY[1:]}"
        assert "a1b2c3d4" not in Redactor(KEY).text(escaped)
        if way != "\\\\u0073":
            assert b"a1b2c3d4" not in Redactor(KEY).answer(escaped.encode())
