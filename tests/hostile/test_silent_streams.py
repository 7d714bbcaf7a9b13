"""A model that sends nothing for a long time, and a service that sends comments without end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import wattfare_flask
import wattfare_litestar
import wattfare_starlette
from flask import Flask
from support.drivers import INFERENCE, JSON, Drive, Driver, Live, asgi_app, body_of
from support.fake_wattfare import DONE, SECRET_KEY, Exchange, FakeWattfare, held, held_stream, word
from support.http_client import fetch, ssl_context
from support.patience import PATIENCE
from support.servers import uvicorn_process, uvicorn_server
from support.service import App, Service, chat_body
from support.upstream import Exchange as UpstreamExchange
from support.upstream import Upstream
from support.victim import victim_at

from wattfare_mw import AsyncWattfare, Wattfare, WattfareMiddleware
from wattfare_mw.heartbeat import COMMENT
from wattfare_mw.service.api.output import ASGIOutput
from wattfare_mw.service.asgi import create_app
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.settings import Settings
from wattfare_mw.transport.idle import IdleTimer

#: How long a stream is silent in these tests before a comment is sent, in seconds.
SOON = 0.05
STREAM = body_of(stream=True)


# -- the service


@pytest.fixture
def app(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """An app of a service in front of the fake upstream. Its ledger is verified afterwards."""
    monkeypatch.setattr("wattfare_mw.service.api.output.HEARTBEAT_SECONDS", SOON)
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    with uvicorn_server(create_app(Settings(database=database, upstream=upstream.url))) as address:
        service = Service(f"http://{address[0]}:{address[1]}", database, process=None)  # type: ignore[arg-type]
        # Once it answers, its tables exist.
        assert fetch(f"{service.url}/healthz").status_code == 200
        with service.app() as app:
            app.connect()
            yield app
    assert read_database(database, verify) == []


class SilentModel:
    """An upstream that pauses before each word until a test releases it."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self._go_on = threading.Semaphore(0)

    def __call__(self, exchange: UpstreamExchange) -> None:
        exchange.start_stream()
        for text in self._words:
            assert self._go_on.acquire(timeout=PATIENCE)
            exchange.word(text)
        exchange.usage({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
        exchange.done()

    def go_on(self) -> None:
        self._go_on.release()


def stream(app: App) -> Any:
    body = chat_body(model="fake/model", stream=True)
    return app.http.stream("POST", "/chat/completions", json=body, headers=app.paid_by("u1"))


def events_of(data: bytes) -> list[bytes]:
    assert data.endswith(b"\n\n")
    return data[:-2].split(b"\n\n")


def test_comments_are_sent_between_events(app: App, upstream: Upstream) -> None:
    model = upstream.script = SilentModel("one", "two", "three")
    got = b""
    comments = 0
    with stream(app) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            got += piece
            if got.count(COMMENT) > comments + 1:  # two for each pause
                comments = got.count(COMMENT)
                model.go_on()
    events = events_of(got)
    assert events.count(COMMENT.strip()) >= 6
    words = [event for event in events if b'"content"' in event]
    assert [part for each in words for part in (b"one", b"two", b"three") if part in each] == [
        *(b"one", b"two", b"three")
    ]
    assert events[-1] == b"data: [DONE]"
    assert all(event.startswith((b"data: {", b"data: [", b": wattfare")) for event in events)
    assert app.status()["usage"]["monthlyUsd"] > 0


def test_comment_does_not_cut_an_event(app: App, upstream: Upstream) -> None:
    heard = threading.Event()

    def script(exchange: UpstreamExchange) -> None:
        exchange.start_stream()
        exchange.chunk(b'data: {"choices":[{"index":0,')
        assert heard.wait(PATIENCE)
        exchange.chunk(b'"delta":{"content":"hello"}}]}\n\n')
        exchange.done()

    upstream.script = script
    got = b""
    with stream(app) as answer:
        for piece in answer.iter_raw():
            got += piece
            if COMMENT in got:
                heard.set()
    assert b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n' in got
    assert got.startswith(COMMENT)


@pytest.mark.parametrize("status", [429, 500])
def test_upstream_with_a_late_status_can_still_refuse(
    app: App, upstream: Upstream, status: int
) -> None:
    def script(exchange: UpstreamExchange) -> None:
        time.sleep(4 * SOON)
        exchange.answer({"error": {"message": "no"}}, status=status)

    upstream.script = script
    with stream(app) as answer:
        assert answer.status_code in (429, 502)
        assert "error" in json_of(answer)
    assert app.status()["usage"]["monthlyUsd"] == 0


def json_of(answer: httpx.Response) -> Any:
    answer.read()
    return answer.json()


def test_client_that_disconnects_during_a_pause(app: App, upstream: Upstream) -> None:
    upstream.script = lambda exchange: (exchange.start_stream(), exchange.hang())[0]
    with stream(app) as answer:
        assert next(answer.iter_raw()) == COMMENT
    upstream.wait_gone()


def test_clients_ignore_comments(app: App, upstream: Upstream) -> None:
    class Often(SilentModel):
        """Continues by itself after some comments."""

        def __call__(self, exchange: UpstreamExchange) -> None:
            threading.Timer(4 * SOON, self.go_on).start()
            super().__call__(exchange)

    def sync() -> str:
        with Wattfare(app.keys.secret_key, base_url=app.service.url) as client:
            return "".join(client.user("u1").model("fake/model").stream("hi").text_stream)

    def with_openai() -> str:
        with app.openai() as client:
            chunks = client.chat.completions.create(**chat_body(model="fake/model"), stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def with_asyncio() -> str:
        async def main() -> str:
            async with AsyncWattfare(app.keys.secret_key, base_url=app.service.url) as client:
                answer = client.user("u1").model("fake/model").stream("hi")
                return "".join([text async for text in answer.text_stream])

        return asyncio.run(main())

    upstream.script = Often("hello")
    with ThreadPoolExecutor() as threads:
        futures = [threads.submit(client) for client in (sync, with_openai, with_asyncio)]
        assert [future.result() for future in futures] == ["hello"] * 3


class SlowClient:
    """An ASGI ``send`` that a test releases one message at a time."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.at_once = 0
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            return
        assert self.at_once == 0, "two sends ran at once"
        self.at_once += 1
        self.asked.set()
        try:
            await self.open.wait()
            self.sent.append(message["body"])
        finally:
            self.at_once -= 1


async def test_event_waits_until_a_comment_is_sent() -> None:
    client = SlowClient()
    output = ASGIOutput(client, tuple, IdleTimer(asyncio.get_running_loop(), 0.01))  # type: ignore[arg-type]
    await output.begin()
    await client.asked.wait()
    writing = asyncio.create_task(output.write(b"data: 1\n\n"))
    await asyncio.sleep(0.03)  # time for another comment, which must not be sent
    client.open.set()
    await writing
    await output.end(b"data: 2\n\n")
    output.close()
    assert client.sent == [COMMENT, b"data: 1\n\n", b"data: 2\n\n"]
    await asyncio.sleep(0.03)
    assert len(client.sent) == 3


async def test_comment_that_cannot_be_sent_ends_the_call() -> None:
    async def send(message: Any) -> None:
        if message["type"] != "http.response.start":
            failed.set()
            raise OSError("gone")

    failed = asyncio.Event()
    output = ASGIOutput(send, tuple, IdleTimer(asyncio.get_running_loop(), 0.01))  # type: ignore[arg-type]
    await output.begin()
    await failed.wait()
    with pytest.raises(OSError, match="gone"):
        await output.write(b"data: 1\n\n")
    output.close()


async def test_cancelled_call_sends_no_comment() -> None:
    client = SlowClient()
    output = ASGIOutput(client, tuple, IdleTimer(asyncio.get_running_loop(), 0.01))  # type: ignore[arg-type]
    await output.begin()
    await client.asked.wait()
    output.close()
    client.open.set()
    await asyncio.sleep(0.03)
    assert client.sent == []


# -- the middleware


def begin(driver: Driver, fake: FakeWattfare) -> tuple[Live, Exchange]:
    fake.script = held_stream
    live = driver.open("POST", INFERENCE, JSON, STREAM)
    return live, fake.next()


PINGS = [b": ping\n\n", b":\n\n", b": a\n: b\r\n\r\n", b":\r\r", b": OPENROUTER PROCESSING\n\n"]


@pytest.mark.parametrize("ping", PINGS)
def test_middleware_drops_a_flood_of_comments(
    drive: Drive, fake: FakeWattfare, ping: bytes
) -> None:
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one"))
    for _ in range(20):
        exchange.chunk(ping * 100)
    exchange.chunk(ping + word("two") + ping + DONE)
    exchange.end()
    body = live.rest()
    assert body.replace(ping, b"", 1) == word("one") + word("two") + DONE
    assert body.count(ping) == 1


def test_middleware_forwards_a_comment_every_ten_seconds(
    drive: Drive, fake: FakeWattfare, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("wattfare_mw.middleware.relay.time", clock)
    live, exchange = begin(drive(), fake)
    got: list[bytes | None] = []
    for seconds in (1000.0, 1009.0, 1010.5, 1020.0, 1021.0):
        clock.now = seconds
        exchange.chunk(b": at %d\n\n" % seconds)
        exchange.chunk(word(str(seconds)))
        while got[-1:] == [] or b"data" not in got[-1]:  # type: ignore[operator]
            got.append(live.next())
        got.append(b"")
    exchange.chunk(DONE)
    exchange.end()
    live.rest()
    comments = [line for part in got for line in (part or b"").split(b"\n") if line[:1] == b":"]
    assert comments == [b": at 1000", b": at 1010", b": at 1021"]


def test_event_that_contains_a_comment_is_unchanged(drive: Drive, fake: FakeWattfare) -> None:
    event = b": about\ndata: 1\n: more\n\n"
    fake.script = lambda exchange: exchange.stream(*[event] * 3, DONE)
    assert drive().request("POST", INFERENCE, JSON, STREAM).body == event * 3 + DONE


def test_heartbeat_none_forwards_no_comment(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.stream(PINGS[0], word("one"), *PINGS, DONE)
    answer = drive(heartbeat=None).request("POST", INFERENCE, JSON, STREAM)
    assert answer.body == word("one") + DONE


@pytest.mark.parametrize("heartbeat", [0, -1, True, "15", float("nan"), float("inf"), 3601])
def test_invalid_heartbeat_raises_value_error(heartbeat: Any) -> None:
    with pytest.raises(ValueError, match="heartbeat must be above 0 and at most 3,600"):
        WattfareMiddleware(
            asgi_app, resolve_user=lambda _: "u", secret_key=SECRET_KEY, heartbeat=heartbeat
        )


only_asgi = pytest.mark.parametrize("interface", ["asgi"], indirect=True)
only_wsgi = pytest.mark.parametrize("interface", ["wsgi"], indirect=True)


@only_asgi
def test_asgi_middleware_sends_its_own_comments(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(heartbeat=SOON), fake)
    assert live.next() == COMMENT
    exchange.chunk(word("one")[:10])
    assert live.next() == COMMENT
    exchange.chunk(word("one")[10:])
    while (got := live.next()) == COMMENT:
        pass
    assert got == word("one")
    assert live.next() == COMMENT
    exchange.chunk(DONE)
    exchange.end()
    assert live.rest().replace(COMMENT, b"") == DONE


@only_asgi
def test_asgi_dropped_comments_do_not_delay_a_heartbeat(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(heartbeat=0.2), fake)
    stop = threading.Event()

    def flood() -> None:
        while not stop.wait(0.01):
            exchange.chunk(b": ping\n\n")

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        assert live.next() == b": ping\n\n"
        assert live.next() == COMMENT
    finally:
        stop.set()
        flooding.join()
    exchange.chunk(DONE)
    exchange.end()
    live.rest()


@only_asgi
def test_asgi_sends_nothing_before_the_status(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = held
    live = drive(heartbeat=SOON).open("POST", INFERENCE, JSON, STREAM)
    exchange = fake.next()
    assert not live.started.wait(4 * SOON)
    exchange.error("budget_exceeded", 402)
    assert live.answered().status == 402


@only_asgi
def test_asgi_heartbeat_none_sends_no_comment(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(heartbeat=None), fake)
    live.wait_started()
    time.sleep(4 * SOON)
    exchange.chunk(DONE)
    exchange.end()
    assert live.rest() == DONE


@only_asgi
def test_asgi_client_that_disconnects_during_a_pause(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(heartbeat=SOON), fake)
    assert live.next() == COMMENT
    live.close()
    exchange.wait_gone()
    live.rest()


@only_wsgi
def test_wsgi_forwards_comments_and_sends_none(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(heartbeat=SOON), fake)
    live.wait_started()
    time.sleep(4 * SOON)
    exchange.chunk(b": wattfare\n\n" + DONE)
    exchange.end()
    assert live.rest() == COMMENT + DONE


def test_flood_of_comments_delays_no_other_stream(fake: FakeWattfare) -> None:
    """Uses a real server, and an openai client that reads the flooded stream."""
    fake.script = held_stream
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    with uvicorn_process("support.middleware_app:asgi", env=env) as (address, _), ExitStack() as on:
        url = f"http://{address[0]}:{address[1]}"
        on.enter_context(victim_at(url + INFERENCE, {"x-me": "victim"}))
        http = openai.DefaultHttpxClient(trust_env=False, verify=ssl_context())
        client = on.enter_context(
            openai.OpenAI(
                api_key="none", base_url=f"{url}/api/wattfare", max_retries=0, http_client=http
            )
        )

        def read() -> str:
            chunks = client.chat.completions.create(
                model="openai/gpt-4o", messages=[], stream=True, extra_headers={"x-me": "attacker"}
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        with ThreadPoolExecutor() as threads:
            attacker = threads.submit(read)
            exchange = fake.next()
            for _ in range(10):
                exchange.chunk(b":\n\n" * 50_000)
            exchange.chunk(word("end") + DONE)
            exchange.end()
            assert attacker.result(3 * PATIENCE) == "end"  # the client has much to read


def test_each_adapter_accepts_the_heartbeat_option() -> None:
    options: Any = {"resolve_user": lambda _: "u", "secret_key": SECRET_KEY, "heartbeat": None}
    wattfare_flask.WattfareMiddleware(Flask(__name__), **options)
    wattfare_litestar.WattfarePlugin(**options)
    wattfare_litestar.WattfareMiddleware(asgi_app, **options)
    wattfare_starlette.WattfareMiddleware(asgi_app, **options)
