"""The concurrent calls of one user leave room for other users. Each slot is freed afterwards."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.drivers import INFERENCE, JSON, KINDS, Live, body_of
from support.fake_wattfare import DONE, SECRET_KEY, FakeWattfare, held, held_stream, word
from support.http_client import fetch, http_client
from support.servers import Visitor, gunicorn_server
from support.service import App, Service, chat_body, eventually, run_cli, run_service
from support.victim import victim_at

from wattfare_mw import WattfareMiddleware, WattfareRateLimitError
from wattfare_mw.calls_at_once import CallsAtOnce

#: Enough words that no stream ends before the test: `wattfare/echo-slow` takes 50 ms for each.
LONG = "word " * 2000


# -- the service


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, watch: Any) -> Iterator[Service]:
    """A service that allows two calls at once for each user and three for each app."""
    options = ("--max-calls-per-user", "2", "--max-calls-per-app", "3")
    with run_service(tmp_path_factory.mktemp("limited"), *options) as service, watch(service):
        yield service


@pytest.fixture
def app(limited: Service) -> Iterator[App]:
    with limited.app() as app:
        for user in ("mallory", "alice", "bob"):
            app.connect(user)
        yield app


@contextmanager
def stream(app: App, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Opens a long stream. Leaving the block disconnects."""
    body = chat_body(LONG, model="wattfare/echo-slow", stream=True, max_tokens=2000)
    with app.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
        pieces = answer.iter_raw()  # httpx disconnects if the response is dropped
        if answer.status_code == 200:
            next(pieces)
        else:
            answer.read()
        yield answer


def refused(answer: httpx.Response, whose: str) -> None:
    assert answer.status_code == 429, answer.text
    assert answer.json()["error"]["code"] == "rate_limited"
    assert f"{whose} may have at most" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


def test_calls_at_once_are_limited_per_user_and_per_app(app: App) -> None:
    mallory, alice = app.paid_by("mallory"), app.paid_by("alice")
    with app.service.app() as other, ExitStack() as streams:
        for _ in range(2):
            assert streams.enter_context(stream(app, mallory)).status_code == 200
        for _ in range(5):
            refused(app.chat(user="mallory"), "A user or a grant")
        # Mallory's refused calls do not count for the app.
        assert app.chat(user="alice").status_code == 200
        assert streams.enter_context(stream(app, alice)).status_code == 200
        refused(app.chat(user="bob"), "An app")
        # Another app has its own count.
        other.connect("mallory")
        assert other.chat(user="mallory").status_code == 200
    # All have disconnected.
    for user in ("mallory", "alice", "bob"):
        assert eventually(lambda user=user: app.chat(user=user).status_code == 200)


def test_grant_has_its_own_count_of_calls_at_once(app: App) -> None:
    def grant() -> dict[str, str]:
        key = {"authorization": f"Bearer {app.keys.publishable_key}"}
        answer = app.http.post("/grants", json={"requests": 9, "maxUsd": 1}, headers=key)
        return {**app.auth, "x-wattfare-grant": answer.json()["grantToken"]}

    one, two = grant(), grant()
    with stream(app, one), stream(app, one):
        answer = app.http.post("/chat/completions", json=chat_body(), headers=one)
        refused(answer, "A user or a grant")
        assert app.http.post("/chat/completions", json=chat_body(), headers=two).status_code == 200


@pytest.mark.parametrize("reset", [False, True])
def test_half_sent_body_counts_until_its_client_disconnects(app: App, reset: bool) -> None:
    port = int(app.service.url.rpartition(":")[2])
    head = {**app.paid_by("mallory"), "content-type": "application/json", "content-length": "9999"}
    visitors: list[Visitor] = []

    def one_more_is_too_many() -> bool:
        visitors.append(Visitor(("127.0.0.1", port)))
        visitors[-1].ask("POST", "/api/v1/chat/completions", head, b'{"model": ')
        return app.chat(user="mallory").status_code == 429

    assert eventually(one_more_is_too_many)
    assert app.chat(user="alice").status_code == 200
    for visitor in visitors:
        visitor.leave(reset=reset)
    assert eventually(lambda: app.chat(user="mallory").status_code == 200)


def test_failed_calls_free_their_slots(app: App) -> None:
    mallory = app.paid_by("mallory")
    for body in ({"model": "no/such-model", "messages": []}, {"nothing": 1}, chat_body(stream=7)):
        for _ in range(4):
            answer = app.http.post("/chat/completions", json=body, headers=mallory)
            assert 400 <= answer.status_code < 500
            assert answer.status_code != 429
    for _ in range(4):
        assert app.chat(user="nobody").status_code == 402
    assert app.chat(user="mallory").status_code == 200


@pytest.mark.parametrize("option", ["--max-calls-per-user", "--max-calls-per-app"])
def test_limit_of_zero_calls_is_refused(option: str) -> None:
    command = run_cli("serve", option, "0")
    assert command.returncode == 2
    assert option in command.stderr


# -- the count


def test_count_returns_to_zero_after_many_threads() -> None:
    calls = CallsAtOnce(3, "Too many.")
    granted: list[int] = []

    def work() -> None:
        for _ in range(500):
            try:
                slot = calls.hold("key")
            except WattfareRateLimitError:
                continue
            granted.append(calls._counts["key"])
            slot.release()
            slot.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert granted
    assert max(granted) <= 3
    assert calls._counts == {}


# -- the middleware


@pytest.fixture(params=["asgi", "wsgi"])
def drive(request: pytest.FixtureRequest, fake: FakeWattfare) -> Iterator[Any]:
    driver = KINDS[request.param](
        resolve_user=lambda request: request.headers.get("x-me"),
        secret_key=SECRET_KEY,
        base_url=fake.url,
        max_calls_per_user=2,
        allow_grants=True,
    )
    yield driver
    driver.close()


def ask(drive: Any, user: str = "mallory", **fields: Any) -> Live:
    return drive.open("POST", INFERENCE, {**JSON, "x-me": user}, body_of(**fields))


def nothing_counts(drive: Any) -> bool:
    return drive.middleware._gate._calls_at_once._counts == {}


def test_middleware_counts_streams_until_they_end(drive: Any, fake: FakeWattfare) -> None:
    fake.script = held_stream
    streams = [ask(drive, stream=True) for _ in range(2)]
    exchanges = [fake.next() for _ in streams]
    over = ask(drive, stream=True).answered()
    assert (over.status, over.code) == (429, "rate_limited")
    assert "A user or a grant may have at most" in over.json["error"]["message"]
    assert over.headers["retry-after"] == "1"
    other = ask(drive, "alice", stream=True)
    exchanges.append(fake.next())
    for exchange in exchanges:
        exchange.chunk(word("hi"))
        exchange.chunk(DONE)
        exchange.end()
    for live in (*streams, other):
        assert live.answered().status == 200
    assert eventually(lambda: nothing_counts(drive))


def test_middleware_frees_the_slot_after_a_disconnect(drive: Any, fake: FakeWattfare) -> None:
    fake.script = held_stream
    streams = [ask(drive, stream=True) for _ in range(2)]
    exchanges = [fake.next() for _ in streams]
    for exchange in exchanges:
        exchange.chunk(word("hi"))
    for live in streams:
        live.next()
        live.close()
    for exchange in exchanges:
        # so that a WSGI server notices that the client has disconnected
        exchange.chunk(word("more"))
        exchange.wait_gone()
    assert eventually(lambda: nothing_counts(drive))


def test_middleware_counts_whole_answers_and_failures(drive: Any, fake: FakeWattfare) -> None:
    fake.script = held
    waiting = [ask(drive) for _ in range(2)]
    exchanges = [fake.next() for _ in waiting]
    assert ask(drive).answered().status == 429
    exchanges[0].answer('{"choices": []}')
    exchanges[1].reset()
    assert sorted(live.answered().status for live in waiting) == [200, 502]
    for fields in ({"model": 7}, {"stream": "x"}):
        for _ in range(3):
            assert ask(drive, **fields).answered().status == 400
    assert eventually(lambda: nothing_counts(drive))


def test_middleware_counts_a_grant_as_its_own_payer(drive: Any, fake: FakeWattfare) -> None:
    fake.script = held
    headers = {**JSON, "x-me": "mallory", "x-wattfare-grant": "gt_1"}
    waiting = [drive.open("POST", INFERENCE, headers, body_of()) for _ in range(2)]
    exchanges = [fake.next() for _ in waiting]
    assert drive.request("POST", INFERENCE, headers, body_of()).status == 429
    waiting.append(ask(drive))
    exchanges.append(fake.next())
    for exchange in exchanges:
        exchange.answer('{"choices": []}')
    for live in waiting:
        assert live.answered().status == 200
    assert eventually(lambda: nothing_counts(drive))


def test_middleware_frees_the_slot_of_an_answer_that_a_framework_drops(fake: FakeWattfare) -> None:
    middleware: Any = WattfareMiddleware(
        lambda environ, start_response: [],
        resolve_user=lambda request: "mallory",
        secret_key=SECRET_KEY,
        base_url=fake.url,
        max_calls_per_user=1,
    )
    from support.drivers import environ_of, with_length

    def start_response(*_: Any) -> None:
        raise OSError("the client has gone")

    for fields in ({}, {"stream": True}):
        body = body_of(**fields)
        environ = environ_of("POST", INFERENCE, with_length(JSON, body), body, "")
        with pytest.raises(OSError, match="gone"):
            middleware(environ, start_response)
        gc.collect()
        assert middleware._gate._calls_at_once._counts == {}
    middleware.close()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2"])
def test_invalid_call_limit_raises_value_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_calls_per_user"):
        WattfareMiddleware(
            lambda environ, start_response: [],
            resolve_user=lambda request: None,
            secret_key=SECRET_KEY,
            max_calls_per_user=wrong,
        )


APP = """
import flask
from wattfare_flask import WattfareMiddleware

app = flask.Flask("app")
app.add_url_rule("/", view_func=lambda: "hi")
WattfareMiddleware(
    app, resolve_user=lambda request: request.cookies.get("user"), max_calls_per_user=2
)
"""


def test_slow_streams_of_one_user_leave_threads_for_others(
    fake: FakeWattfare, tmp_path: Path
) -> None:
    """gunicorn has four threads here: without a limit, four streams would hold all of them."""
    (tmp_path / "streaming_app.py").write_text(APP)
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    options = ("--worker-class", "gthread", "--threads", "4", "--chdir", str(tmp_path))
    with gunicorn_server("streaming_app:app", *options, env=env) as address, ExitStack() as stack:
        fake.script = held_stream
        headers = {**JSON, "cookie": "user=mallory"}
        visitors = [Visitor(address) for _ in range(4)]
        for visitor in visitors:
            stack.callback(visitor.leave)
            visitor.ask("POST", INFERENCE, headers, body_of(stream=True))
        exchanges = [fake.next() for _ in range(2)]
        url = f"http://{address[0]}:{address[1]}"
        stack.enter_context(victim_at(url + INFERENCE, {"cookie": "user=victim"}))
        assert fetch(url, timeout=20).text == "hi"
        with http_client(timeout=20, cookies={"user": "mallory"}) as client:
            answer = client.post(url + INFERENCE, content=body_of(stream=True), headers=JSON)
        assert answer.status_code == 429
        for exchange in exchanges:
            exchange.chunk(DONE)
            exchange.end()
