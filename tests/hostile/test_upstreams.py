"""An upstream's answer neither stalls the service for others nor fills its memory."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.fake_wattfare import Exchange as FakeExchange
from support.http_client import fetch, http_client
from support.patience import PATIENCE
from support.servers import uvicorn_process, uvicorn_server
from support.service import App, Service, chat_body, eventually
from support.upstream import Exchange, Script, Upstream, completion_of
from support.victim import LONGEST_GAP, MB, MOST_MEMORY, Memory, victim_at

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.asgi import create_app
from wattfare_mw.service.models import catalog, upstream_http, upstream_job, upstream_json
from wattfare_mw.service.models.upstream import Upstream as Provider
from wattfare_mw.service.payers import openrouter
from wattfare_mw.service.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def app(attacked: Service, upstream: Upstream) -> Iterator[App]:
    with attacked.app() as app:
        app.connect(monthlyUsd=100)
        yield app


def json_of(size: int, piece: bytes) -> Callable[[Exchange], None]:
    """A JSON answer of this many bytes, made of this piece."""
    start, end = json.dumps(completion_of("x", more=0)).encode().split(b'"more": 0')

    def answer(exchange: Exchange) -> None:
        start_with = start + b'"more": ['
        count = (size - len(start_with)) // len(piece)
        length = len(start_with) + count * len(piece) + len(b"0]" + end)
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % length
        )
        exchange.send(start_with)
        for _ in range(count // 10_000):
            exchange.send(piece * 10_000)
        exchange.send(piece * (count % 10_000) + b"0]" + end)

    return answer


def flood(piece: bytes) -> Callable[[Exchange], None]:
    """A stream that repeats this piece for 100 MB or until the client disconnects."""

    def answer(exchange: Exchange) -> None:
        exchange.start_stream()
        for _ in range(100):
            exchange.chunk(piece * (MB // len(piece)))
        exchange.done()

    return answer


def compressed(content_type: bytes, piece: bytes) -> Callable[[Exchange], None]:
    """A small answer that is large once decompressed."""
    start = b'{"choices": [], "more": "' if content_type == b"application/json" else b""

    def answer(exchange: Exchange) -> None:
        body = b"".join(parts())
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-encoding: gzip\r\n"
            b"content-length: %d\r\n\r\n" % (content_type, len(body))
        )
        exchange.send(body)

    def parts() -> Iterator[bytes]:
        # In small pieces, so that the victim's thread is not delayed.
        gzip = zlib.compressobj(1, wbits=31)
        yield gzip.compress(start)
        for _ in range(400 * MB // len(piece)):
            yield gzip.compress(piece)
        yield gzip.flush()

    return answer


def endless_head(piece: bytes) -> Callable[[Exchange], None]:
    """Endless headers, up to 100 MB."""

    def answer(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\na: ")
        for _ in range(100):
            exchange.send(piece * (MB // len(piece)))

    return answer


def endless(piece: bytes) -> Script:
    """Repeats these bytes for 100 MB."""

    def answer(exchange: Exchange) -> None:
        for _ in range(100):
            exchange.send(piece * (MB // len(piece)))

    return answer


WHOLE = {
    "400 MB": json_of(400 * MB, b'"aaaaaaaaaaaaaaaa",'),
    "30 MB of numbers": json_of(30 * MB, b"1,"),
    "30 MB of objects": json_of(30 * MB, b'{"a":1},'),
    "30 MB nested": json_of(30 * MB, b"["),
    "long integers": json_of(30 * MB, b"%s," % (b"9" * 4000)),
    "compressed comments": compressed(b"text/event-stream", b":" * MB + b"\n\n"),
    "compressed zeros": compressed(b"application/json", bytes(MB)),
    "an endless header": endless_head(b"b"),
    "endless headers": endless_head(b"b\r\na: "),
    "endless interim answers": endless(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless hints": endless(b"HTTP/1.1 103 X\r\nlink: a\r\n\r\n"),
    "30 MB of text": json_of(30 * MB, b'"%s",' % (b"word " * 1000)),
}
STREAMS = {
    "comments": flood(b": PROCESSING\n\n"),
    "tiny comments": flood(b":\n\n"),
    "events without text": flood(b'data: {"choices":[{"delta":{}}]}\n\n'),
    "empty lines": flood(b"\n"),
    "one endless line": flood(b"d"),
    "one event of endless lines": flood(b"data: a\n"),
    "tiny events": flood(b"data: {}\r\r"),
}


@pytest.mark.parametrize("kind", [*WHOLE, *STREAMS])
def test_upstream_answer_does_not_stall_other_users(
    attacked: Service, app: App, upstream: Upstream, kind: str
) -> None:
    upstream.script = (WHOLE | STREAMS)[kind]
    memory = Memory(attacked.process.pid)
    if kind in WHOLE:
        response = app.chat(model="fake/model", max_tokens=5)
        assert response.status_code in (200, 502), response.text
        assert kind == "30 MB of text" or response.status_code == 502
    else:
        passed = read_some(app)
        # A client gets a few comments, and otherwise only events.
        comments = [line for line in passed.split(b"\n") if line.startswith(b":")]
        assert len(comments) <= 3
    grown = memory.grown()
    assert grown < MOST_MEMORY, f"{grown / MB:.0f} MB"
    assert not [line for line in attacked.log if "Traceback" in line]


def test_endless_interim_responses_end_the_call(
    attacked: Service, app: App, upstream: Upstream
) -> None:
    upstream.script = endless(b"HTTP/1.1 100 Continue\r\n\r\n")
    app.connect("rich", monthlyUsd=1000)
    answer = app.chat("word " * (MB // 4), "rich", model="fake/model", max_tokens=5)
    assert answer.status_code == 502, answer.text


USAGE = {"prompt_tokens": 5, "completion_tokens": 1}


@pytest.mark.parametrize("place", ["choices", "usage", "more"])
def test_decoded_values_are_limited(app: App, upstream: Upstream, place: str) -> None:
    """While the decoder creates a million values, no other thread can run."""
    many = [0] * (upstream_json.MAX_DECODED + 1)
    fields: dict[str, Any] = {"choices": [{"message": many}], "usage": {"a": many}, "more": many}
    answer = completion_of("x", **{"usage": USAGE, place: fields[place]})
    upstream.script = lambda exchange: exchange.answer(answer)
    refused = app.chat(model="fake/model", max_tokens=5)
    assert refused.status_code == 502
    assert "too many values" in refused.text


def test_answer_with_many_log_probabilities_passes(app: App, upstream: Upstream) -> None:
    token = {"token": "x", "logprob": -0.5, "bytes": [120]}
    answer = completion_of("x", usage={**USAGE, "cost": 0.000007})
    answer["choices"][0]["logprobs"] = {"content": [token] * (upstream_json.MAX_DECODED // 4)}
    upstream.script = lambda exchange: exchange.answer(answer)
    passed = app.chat(model="fake/model", max_tokens=5)
    assert passed.json() == answer
    assert app.status()["usage"]["monthlyUsd"] == 0.000007


async def test_answer_that_arrives_byte_by_byte_times_out(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(exchange: Exchange) -> None:
        exchange.start_stream("application/json")
        while True:
            exchange.chunk(b" ")
            time.sleep(0.02)

    upstream.first = drip
    monkeypatch.setattr(upstream_http, "ASK_SECONDS", 0.2)
    provider = Provider(upstream.url, provider="openrouter")
    for answer in (
        provider.models(),
        provider.true_cost("gen-1"),
        provider.check_key("sk-or-payer"),
        openrouter.exchange(provider.http, "code", b"verifier"),
    ):
        with pytest.raises(WattfareError, match="takes too long"):
            await asyncio.wait_for(answer, PATIENCE)
    await provider.close()


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
def test_blocks_of_many_lines_or_bytes_are_large(line_end: bytes) -> None:
    line = b"data:" + line_end
    assert not upstream_job._is_large(line * upstream_job.MANY_LINES)
    assert upstream_job._is_large(line * (upstream_job.MANY_LINES + 1))
    assert not upstream_job._is_large(b"x" * upstream_job.LARGE_BLOCK)
    assert upstream_job._is_large(b"x" * (upstream_job.LARGE_BLOCK + 1))


def stream_of(http: httpx.Client, app: App, user: str, text: str) -> httpx.Response:
    body = chat_body(text, model="fake/model", stream=True, max_tokens=1_000_000)
    request = http.build_request("POST", "/chat/completions", json=body, headers=app.paid_by(user))
    response = http.send(request, stream=True)
    assert response.status_code == 200
    return response


def read_some(app: App) -> bytes:
    """Reads until nothing has arrived for a second."""
    data = b""
    http = http_client(base_url=app.http.base_url)
    with http, closing(stream_of(http, app, "u1", "flood me")) as response:
        response.request.extensions["timeout"]["read"] = 1  # from now on
        try:
            for piece in response.iter_raw():
                data += piece
                if len(data) > MB:
                    break
        except httpx.HTTPError:
            pass
    return data


PRICE = b'{"prompt": "0.000001", "completion": "0.000002"}'
LISTS: dict[str, tuple[bytes, bytes, bytes]] = {
    "models without a price": (b'{"data": [', b'{"id": "a"},', b'{"id": "b"}]}'),
    "models with a price": (b'{"data": [', b'{"id": "a", "pricing": {"prompt": "1"}},', b"{}]}"),
    "nested": (b'{"data": [', b"[", b"]}"),
    "one model with many prices": (
        b'{"data": [{"id": "a", "pricing": {',
        b'"a": 1,',
        b'"b": 1}}]}',
    ),
    "one price with many digits": (
        b'{"data": [{"id": "fake/model", "pricing": %s}, {"id": "a", "pricing": {"prompt": '
        % PRICE,
        b"1",
        b"}}]}",
    ),
}


def test_model_list_does_not_stall_other_users(
    tmp_path: Path, upstream: Upstream, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not stall an app whose middleware forwards the list, either."""
    monkeypatch.setattr(catalog, "FRESH_SECONDS", 0)
    monkeypatch.setattr(catalog, "RETRY_SECONDS", 0)
    settings = Settings(database=f"sqlite:///{tmp_path / 'ledger.db'}", upstream=upstream.url)
    with uvicorn_server(create_app(settings)) as (host, port):
        service = Service(f"http://{host}:{port}", settings.database, process=None)  # type: ignore[arg-type]
        assert fetch(f"{service.url}/healthz").status_code == 200
        with watch(service, "fake/model"), service.app() as app:
            app.connect(monthlyUsd=100)
            for name, (start, piece, end) in LISTS.items():
                read = threading.Event()
                body = start + piece * ((15 * MB) // len(piece)) + end

                def answer(exchange: Exchange, body: bytes = body, read: Any = read) -> None:
                    exchange.answer(body)
                    read.set()

                upstream.models_script = answer

                def served(name: str = name) -> bool:
                    # Meanwhile, the last good list is served.
                    answer = app.chat(model="fake/model", max_tokens=5)
                    assert answer.status_code == 200, (name, answer.text)
                    return read.is_set()  # noqa: B023

                assert eventually(served)
                assert served()


@pytest.mark.long
def test_model_list_does_not_stall_an_app(fake: FakeWattfare) -> None:
    listed = b'{"data": [%s{"id": "b"}]}' % (b'{"id":""},' * (15 * MB // 10))

    def answer(exchange: FakeExchange) -> None:
        exchange.answer(listed)

    fake.script = answer
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    with uvicorn_process("support.middleware_app:guarded", env=env) as ((host, port), _):
        url = f"http://{host}:{port}/api/wattfare"
        with victim_at(f"{url}/chat/completions", {"x-me": "victim"}) as victim:
            listing = fetch(f"{url}/models", headers={"x-me": "u"})
            assert listing.json() == {"data": []}
            assert victim.longest_gap() < LONGEST_GAP / 2  # on the loop, it took twice as long
