"""A refusal of the service does not block a worker of the app."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import pytest
from support.drivers import (
    INFERENCE,
    JSON,
    KINDS,
    MODELS,
    STATUS,
    TOKEN,
    LoopThread,
    body_of,
    scope_of,
)
from support.fake_wattfare import SECRET_KEY, SESSION, Exchange, FakeWattfare, good
from support.http_client import fetch
from support.servers import gunicorn_server
from support.victim import victim_at
from wattfare_flask import WattfareMiddleware, get_user, session_view

from wattfare_mw import (
    AsyncWattfare,
    Request,
    Wattfare,
    WattfareError,
    WattfareNetworkError,
    WattfareRateLimitError,
)
from wattfare_mw.retries import REQUEST_RETRY_DELAY, REQUEST_RETRY_WITHIN, retry_delay

#: Seconds that the service asks the client to wait: a client that waits fails the test by its time
#: limit.
RETRY_AFTER = 20
CALLS: dict[str, tuple[Any, ...]] = {
    "token": ("POST", TOKEN),
    "status": ("GET", STATUS),
    "models": ("GET", MODELS),
    "inference": ("POST", INFERENCE, JSON, body_of()),
}


def limited(exchange: Exchange) -> None:
    """Too many requests, with ``Retry-After``."""
    exchange.error("rate_limited", 429, retry_after=str(RETRY_AFTER))


def busy(exchange: Exchange) -> None:
    """An overloaded service, with ``Retry-After``."""
    exchange.error("upstream", 503, retry_after=str(RETRY_AFTER))


def broken(exchange: Exchange) -> None:
    """A failing service, without ``Retry-After``."""
    exchange.error("upstream", 503)


@pytest.fixture
def drive(request: pytest.FixtureRequest, fake: FakeWattfare) -> Iterator[Any]:
    """The middleware of each interface."""
    driver = KINDS[request.param](
        resolve_user=lambda request: "user_1", secret_key=SECRET_KEY, base_url=fake.url
    )
    yield driver
    driver.close()


BOTH = pytest.mark.parametrize("drive", ["asgi", "wsgi"], indirect=True)


@BOTH
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("script", [limited, busy])
def test_retry_after_is_forwarded_at_once(
    drive: Any, fake: FakeWattfare, call: str, script: Callable[[Exchange], None]
) -> None:
    fake.script = script
    answer = drive.request(*CALLS[call])
    assert answer.status == (429 if script is limited else 503)
    assert answer.headers["retry-after"] == str(RETRY_AFTER)
    assert len(fake.exchanges) == 1


@BOTH
def test_rate_limit_without_a_time_is_forwarded_at_once(drive: Any, fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.error("rate_limited", 429)
    assert drive.request("POST", TOKEN).status == 429
    assert len(fake.exchanges) == 1


@BOTH
@pytest.mark.parametrize(("call", "tries"), [("token", 2), ("status", 2), ("inference", 1)])
def test_failure_is_retried_at_most_once(
    drive: Any, fake: FakeWattfare, call: str, tries: int
) -> None:
    fake.script = broken
    assert drive.request(*CALLS[call]).status == 503
    assert len(fake.exchanges) == tries


def test_retry_delay_within_a_request() -> None:
    def wait(failure: WattfareError, attempt: int = 0, took: float = 0.0) -> float | None:
        return retry_delay(failure, attempt, repeatable=True, in_request=True, took=took)

    failure = WattfareError(status=500)
    assert wait(failure) == REQUEST_RETRY_DELAY
    assert wait(WattfareNetworkError(sent=True)) == REQUEST_RETRY_DELAY
    assert wait(failure, attempt=1) is None
    # A timeout has already blocked the worker for long enough.
    assert wait(failure, took=REQUEST_RETRY_WITHIN + 0.1) is None
    assert wait(WattfareRateLimitError()) is None
    assert wait(WattfareError(status=503, retry_after=0)) is None


def test_budget_refusal_in_a_view_does_not_wait(fake: FakeWattfare) -> None:
    app = flask.Flask("app")
    extension = WattfareMiddleware(
        app, resolve_user=lambda request: "user_1", secret_key=SECRET_KEY, base_url=fake.url
    )
    app.add_url_rule("/budget", view_func=lambda: str(get_user().status().remaining_usd))
    fake.script = limited
    answer = app.test_client().get("/budget")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, str(RETRY_AFTER))
    assert len(fake.exchanges) == 1
    extension.close()


async def test_budget_refusal_under_asgi_does_not_wait(fake: FakeWattfare) -> None:
    import wattfare_mw

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    middleware: Any = wattfare_mw.WattfareMiddleware(
        app, resolve_user=lambda request: "user_1", secret_key=SECRET_KEY, base_url=fake.url
    )
    fake.script = limited
    user = await middleware.user(scope_of("GET", "/", []))
    with pytest.raises(WattfareRateLimitError):
        await user.status()
    with pytest.raises(WattfareRateLimitError):
        middleware.user_sync(user).status()
    assert len(fake.exchanges) == 2
    await middleware.aclose()


def test_token_route_alone_does_not_wait(fake: FakeWattfare) -> None:
    fake.script = limited
    request = Request("POST", "/token", {})
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        assert client.session_handler(lambda request: "user_1")(request).status == 429
        app = flask.Flask("app")
        view = session_view(client, lambda request: "user_1")
        app.add_url_rule("/token", view_func=view, methods=["POST"])
        assert app.test_client().post("/token").status_code == 429

    async def answer() -> int:
        async with AsyncWattfare(SECRET_KEY, base_url=fake.url) as client:
            return (await client.session_handler(lambda request: "user_1")(request)).status

    loop = LoopThread()
    assert loop.run(answer()) == 429
    loop.close()
    assert len(fake.exchanges) == 3


def test_standalone_client_waits(fake: FakeWattfare, monkeypatch: Any) -> None:
    """This includes a client that a middleware shares."""
    waits: list[float] = []
    monkeypatch.setattr("wattfare_mw.client.time.sleep", waits.append)
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        driver = KINDS["wsgi"](resolve_user=lambda request: "user_1", client=client)
        fake.script = limited
        assert driver.request("POST", TOKEN).status == 429
        assert waits == []
        left = [limited]
        fake.script = lambda exchange: left.pop()(exchange) if left else exchange.answer(SESSION)
        assert client.create_session("user_1").token
        assert waits == [RETRY_AFTER]


APP = """
import flask
from wattfare_flask import WattfareMiddleware

app = flask.Flask("app")
app.add_url_rule("/", view_func=lambda: "hi")
WattfareMiddleware(app, resolve_user=lambda request: request.cookies.get("user"))
"""


def test_user_over_the_limit_blocks_no_other_visitor(fake: FakeWattfare, tmp_path: Any) -> None:
    """gunicorn has four threads here, and one user sends ten times as many requests."""
    (tmp_path / "limited_app.py").write_text(APP)
    env = {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}
    options = ("--worker-class", "gthread", "--threads", "4", "--chdir", str(tmp_path))
    with gunicorn_server("limited_app:app", *options, env=env) as (host, port):
        url = f"http://{host}:{port}"

        def post(_: int) -> int:
            return fetch(url + TOKEN, "POST", cookies={"user": "mallory"}, timeout=120).status_code

        # The server has started.
        assert fetch(url).text == "hi"
        fake.script = limited
        with (
            victim_at(url + INFERENCE, {"cookie": "user=victim"}),
            ThreadPoolExecutor(40) as pool,
        ):
            posts = [pool.submit(post, number) for number in range(40)]
            began = time.monotonic()
            longest = 0.0
            while not all(each.done() for each in posts):
                before = time.monotonic()
                assert fetch(url, timeout=120).text == "hi"
                longest = max(longest, time.monotonic() - before)
            assert {each.result() for each in posts} == {429}
        assert longest < RETRY_AFTER / 2
        assert time.monotonic() - began < RETRY_AFTER
        assert len(fake.exchanges) == 40
        fake.script = good
