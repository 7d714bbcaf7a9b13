"""A budget refusal tells the user the true state of the budget. A call may wait until other calls
end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.http_client import http_client
from support.patience import PATIENCE
from support.servers import uvicorn_server, werkzeug_server
from support.service import App, Service, bearer, chat_body, eventually, run_service
from support.upstream import Exchange, Upstream, good, run_upstream

import wattfare_mw
from wattfare_mw import (
    Wattfare,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareGrantError,
    WattfareMiddleware,
    WattfareRateLimitError,
    to_wattfare_error,
)

MODEL = {"model": "fake/model"}
#: About what one call reserves: $0.000001 for a prompt token, $0.000002 for a completion token.
CALL = {**MODEL, "max_tokens": 1000}
#: Longer than any test takes.
WAIT = {"x-wattfare-wait": "60"}


class Turnstile:
    """A script for the upstream that holds each call until the test releases it."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.free = threading.Semaphore(0)
        self.order: list[str] = []

    def __call__(self, exchange: Exchange) -> None:
        self.order.append(exchange.json["messages"][0]["content"])
        self.arrived.release()
        assert self.free.acquire(timeout=PATIENCE)
        good(exchange)

    def wait(self) -> None:
        """Waits until one more call has arrived."""
        assert self.arrived.acquire(timeout=PATIENCE)


@pytest.fixture(scope="module")
def _fake() -> Iterator[Upstream]:
    with run_upstream() as fake:
        yield fake


@pytest.fixture
def fake(_fake: Upstream) -> Iterator[Upstream]:
    _fake.reset()
    yield _fake
    assert not _fake.failures


@pytest.fixture
def turnstile(fake: Upstream) -> Iterator[Turnstile]:
    stile = Turnstile()
    fake.script = stile
    yield stile
    for _ in range(100):
        stile.free.release()


@pytest.fixture(scope="module")
def users_pay(tmp_path_factory: pytest.TempPathFactory, _fake: Upstream) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("users_pay")
    # These tests poll often.
    limits = ("--max-calls-per-user", "6", "--calls-per-minute-per-user", "100000", "--metrics")
    with run_service(path, "--upstream", _fake.url, *limits) as service:
        yield service


@pytest.fixture(scope="module")
def operator_pays(tmp_path_factory: pytest.TempPathFactory, _fake: Upstream) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("operator_pays")
    options = ("--upstream", _fake.url, "--upstream-key", "sk-or-operator")
    with run_service(path, *options, "--user-ceiling-usd", "0.001") as service:
        yield service


@pytest.fixture
def app(users_pay: Service) -> Iterator[App]:
    with users_pay.app() as app:
        yield app


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask(app: App, text: str = "hello", user: str = "u1", **more: Any) -> httpx.Response:
    """Sends a call with extra headers."""
    headers = {**app.paid_by(user), **more.pop("headers", {})}
    body = chat_body(text, **{**CALL, **more})
    return app.http.post("/chat/completions", json=body, headers=headers)


def error_in(answer: httpx.Response, status: int = 402) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def first_of_next_month() -> float:
    now = datetime.now(UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


# -- the text of a refusal


def test_refusal_says_that_the_call_needs_more_than_the_cap_leaves(app: App) -> None:
    app.connect(monthlyUsd=0.0001)
    error = error_in(ask(app))
    assert error["code"] == "budget_exceeded"
    assert error["limitedBy"] == "cap"
    assert error["remainingUsd"] == 0.0001
    assert error["neededUsd"] > 0.0001
    assert error["resetsAt"] == first_of_next_month()
    day = datetime.fromtimestamp(error["resetsAt"], UTC)
    assert f"and $0.0001 of the monthly cap is left until 1 {day:%B}." in error["message"] or (
        f"and $0.00010 of the monthly cap is left until 1 {day:%B}." in error["message"]
    )
    # The amount is exact: a cap of this amount admits the call.
    app.connect(monthlyUsd=error["neededUsd"])
    assert ask(app).status_code == 200


def test_call_that_may_not_be_shortened_needs_its_full_amount(app: App) -> None:
    app.connect(monthlyUsd=0.001)
    whole = error_in(ask(app, headers={"x-wattfare-on-low-budget": "refuse"}))
    assert whole["neededUsd"] > 0.002
    assert whole["remainingUsd"] == 0.001
    assert ask(app).status_code == 200


def test_refusal_says_that_the_monthly_cap_is_reached(app: App, fake: Upstream) -> None:
    usage = {"prompt_tokens": 500, "completion_tokens": 500, "cost": 0.01}

    def costly(exchange: Exchange) -> None:
        message = {"role": "assistant", "content": "x"}
        exchange.answer({"choices": [{"index": 0, "message": message}], "usage": usage})

    fake.script = costly
    app.connect(monthlyUsd=0.001)
    assert ask(app).status_code == 200
    error = error_in(ask(app))
    assert error["message"].startswith("The monthly cap is reached. It resets on 1 ")
    assert error["remainingUsd"] == 0


def test_refusal_names_the_operators_ceiling(operator_pays: Service) -> None:
    with operator_pays.app() as app:
        app.connect(monthlyUsd=100)
        error = error_in(ask(app, "word " * 1000))
        assert error["limitedBy"] == "ceiling"
        assert error["remainingUsd"] == 0.001
        assert "the operator's limit for this user" in error["message"]
        app.connect(monthlyUsd=0.0001)
        assert error_in(ask(app))["limitedBy"] == "cap"


def grant_of(app: App, usd: float) -> dict[str, str]:
    answer = app.http.post(
        "/grants",
        json={"requests": 9, "maxUsd": usd},
        headers=bearer(app.keys.publishable_key),
    )
    assert answer.status_code == 200, answer.text
    return {**app.auth, "x-wattfare-grant": answer.json()["grantToken"]}


def test_refusal_names_the_grant(app: App) -> None:
    headers = grant_of(app, 0.0001)
    answer = app.http.post("/chat/completions", json=chat_body(**CALL), headers=headers)
    error = error_in(answer)
    assert (error["code"], error["limitedBy"]) == ("grant_invalid", "grant")
    assert error["neededUsd"] > error["remainingUsd"] == 0.0001
    assert "resetsAt" not in error  # a grant does not reset
    assert "of the grant's cap is left." in error["message"]


def test_refusal_says_that_only_calls_in_flight_hold_the_budget(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.001)
    first = pool.submit(ask, app)
    turnstile.wait()
    answer = ask(app)
    error = error_in(answer, 429)
    assert (error["code"], error["limitedBy"]) == ("rate_limited", "in_flight")
    assert answer.headers["retry-after"] == "1"
    assert error["neededUsd"] > error["remainingUsd"] == 0
    assert "$0.00 is free. The oldest has run for " in error["message"]
    assert error["message"].endswith((" second.", " seconds."))
    # It says nothing about other users.
    app.connect("u2", monthlyUsd=0.0001)
    error = error_in(ask(app, user="u2"))
    assert (error["limitedBy"], error["remainingUsd"]) == ("cap", 0.0001)
    turnstile.free.release()
    assert first.result(PATIENCE).status_code == 200


@pytest.mark.parametrize("kind", ["client", "openai", "asgi", "wsgi"])
def test_client_and_middleware_show_the_budget_refusal(app: App, kind: str) -> None:
    app.connect(monthlyUsd=0.0001)
    with ExitStack() as stack:
        if kind == "client":
            wf = stack.enter_context(Wattfare(app.keys.secret_key, base_url=app.service.url))
            with pytest.raises(WattfareBudgetExceededError) as raised:
                wf.user("u1").model("fake/model").generate("hello", max_tokens=1000)
            error: WattfareError | None = raised.value
        else:
            openai = pytest.importorskip("openai")
            url = app.service.api
            if kind != "openai":
                url = stack.enter_context(middleware(app, kind)) + "/api/wattfare"
            client = stack.enter_context(
                openai.OpenAI(
                    base_url=url,
                    api_key=app.keys.secret_key,
                    max_retries=0,
                    default_headers={"x-wattfare-user": "u1"} if kind == "openai" else {},
                    http_client=openai.DefaultHttpxClient(trust_env=False),
                )
            )
            with pytest.raises(openai.APIStatusError) as failed:
                client.chat.completions.create(**chat_body(**CALL))
            error = to_wattfare_error(failed.value)
    assert isinstance(error, WattfareBudgetExceededError)
    assert error.remaining_usd == Decimal("0.0001")
    assert isinstance(error.needed_usd, Decimal)
    assert error.needed_usd > error.remaining_usd
    assert error.resets_at == datetime.fromtimestamp(first_of_next_month(), UTC)
    assert error.limited_by == "cap"
    assert error.to_wire()["error"]["remainingUsd"] == 0.0001


def middleware(app: App, kind: str) -> Any:
    """Serves the middleware around an app without routes; yields its address."""
    from contextlib import contextmanager

    from support.drivers import asgi_app, wsgi_app

    inner, serve = (asgi_app, uvicorn_server) if kind == "asgi" else (wsgi_app, werkzeug_server)

    @contextmanager
    def running() -> Iterator[str]:
        wrapped = WattfareMiddleware(
            inner,
            resolve_user=lambda _request: "u1",
            secret_key=app.keys.secret_key,
            base_url=app.service.url,
        )
        with serve(wrapped) as (host, port):
            yield f"http://{host}:{port}"

    return running()


def test_grant_error_and_rate_limit_carry_the_budget_fields(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    with Wattfare(app.keys.secret_key, base_url=app.service.url) as wf:
        token = grant_of(app, 0.0001)["x-wattfare-grant"]
        with pytest.raises(WattfareGrantError) as refused:
            wf.grant(token).model("fake/model").generate("hello", max_tokens=1000)
        assert refused.value.limited_by == "grant"
        assert refused.value.resets_at is None
        app.connect(monthlyUsd=0.001)
        first = pool.submit(ask, app)
        turnstile.wait()
        with pytest.raises(WattfareRateLimitError) as limited:
            wf.user("u1").model("fake/model").generate("hello", max_tokens=1000)
        assert limited.value.limited_by == "in_flight"
        turnstile.free.release()
        assert first.result(PATIENCE).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"neededUsd": "1", "remainingUsd": None, "resetsAt": "soon", "limitedBy": 7},
        {"neededUsd": -1, "remainingUsd": 1e300, "resetsAt": 1e300, "limitedBy": "x" * 1000},
        {"neededUsd": True, "remainingUsd": [], "resetsAt": -5, "limitedBy": "two words\n"},
        {"neededUsd": {}, "resetsAt": True, "limitedBy": ""},
    ],
)
def test_unreadable_budget_fields_are_left_out(fields: dict[str, Any]) -> None:
    import msgspec

    from wattfare_mw.errors import error_from_answer

    body = msgspec.json.encode({"error": {"code": "budget_exceeded", "message": "m", **fields}})
    error = error_from_answer(402, body)
    assert isinstance(error, WattfareBudgetExceededError)
    parts = (error.needed_usd, error.remaining_usd, error.resets_at, error.limited_by)
    assert parts == (None, None, None, None)
    assert error.to_wire() == {"error": {"code": "budget_exceeded", "message": "m"}}


# -- a call that waits for its budget


def later(pool: ThreadPoolExecutor, *asked: Any, **more: Any) -> Future[httpx.Response]:
    """Starts a call that waits for its budget, in a thread."""

    def call() -> httpx.Response:
        # A test that polls at the same moment can use up the limit of calls at once.
        while "running calls" in (answer := ask(*asked, headers=WAIT, **more)).text:
            pass
        return answer

    return pool.submit(call)


def waits(app: App, count: int = 1) -> None:
    """Waits until this many calls wait for their budget."""
    line = f"wattfare_waiting_calls {float(count)}"
    assert eventually(lambda: line in app.http.get(f"{app.service.url}/metrics").text)


def test_call_waits_until_the_budget_is_free(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app, "first")
    turnstile.wait()
    assert ask(app).status_code == 429
    second = later(pool, app, "second")
    turnstile.free.release(2)
    assert first.result(PATIENCE).status_code == 200
    assert second.result(PATIENCE).status_code == 200
    assert turnstile.order == ["first", "second"]


def test_call_by_grant_waits_too(app: App, turnstile: Turnstile, pool: ThreadPoolExecutor) -> None:
    headers = grant_of(app, 0.0022)

    def call(text: str, **more: str) -> httpx.Response:
        body = chat_body(text, **CALL)
        return app.http.post("/chat/completions", json=body, headers={**headers, **more})

    first = pool.submit(call, "first")
    turnstile.wait()
    second = pool.submit(call, "second", **WAIT)
    turnstile.free.release(2)
    assert first.result(PATIENCE).status_code == 200
    assert second.result(PATIENCE).status_code == 200


def test_waiting_calls_are_admitted_in_order(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0025)
    calls = [pool.submit(ask, app, "0")]
    turnstile.wait()
    for n in range(1, 5):
        calls.append(later(pool, app, str(n)))
        waits(app, n)
    for _ in range(4):
        turnstile.free.release()
        turnstile.wait()
    turnstile.free.release()
    assert [call.result(PATIENCE).status_code for call in calls] == [200] * 5
    assert turnstile.order == ["0", "1", "2", "3", "4"]


def test_wait_ends_at_its_timeout(app: App, turnstile: Turnstile, pool: ThreadPoolExecutor) -> None:
    app.connect(monthlyUsd=0.001)
    first = pool.submit(ask, app)
    turnstile.wait()
    began = time.monotonic()
    error = error_in(ask(app, headers={"x-wattfare-wait": "0.3"}), 429)
    assert time.monotonic() - began >= 0.3
    assert error["limitedBy"] == "in_flight"
    assert "The oldest has run for" in error["message"]
    turnstile.free.release()
    assert first.result(PATIENCE).status_code == 200


def test_call_that_cannot_be_helped_by_waiting_is_refused_at_once(app: App) -> None:
    app.connect(monthlyUsd=0.0001)
    began = time.monotonic()
    assert error_in(ask(app, headers=WAIT))["limitedBy"] == "cap"
    assert error_in(ask(app, user="nobody", headers=WAIT))["code"] == "not_connected"
    assert time.monotonic() - began < 30


def test_waiting_call_counts_as_a_call_at_once(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app)
    turnstile.wait()
    rest = [later(pool, app) for _ in range(5)]
    assert eventually(lambda: "running calls" in ask(app).text)
    turnstile.free.release(6)
    assert [call.result(PATIENCE).status_code for call in (first, *rest)] == [200] * 6


def test_wait_ends_if_the_client_disconnects(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app, "first")
    turnstile.wait()
    for _ in range(5):  # as many as the limit of calls at once allows, beside the first
        with pytest.raises(httpx.ReadTimeout):
            app.http.post(
                "/chat/completions",
                json=chat_body("gone", **CALL),
                headers={**app.paid_by("u1"), **WAIT},
                timeout=httpx.Timeout(PATIENCE, read=0.05),
            )

    def all_have_left() -> bool:
        """Checks that all have left: the same number of other calls fits in."""
        short = {"x-wattfare-wait": "0.3"}
        others = list(pool.map(lambda _: ask(app, headers=short), range(5)))
        return all("running calls" not in other.text for other in others)

    assert eventually(all_have_left)
    second = later(pool, app, "second")
    turnstile.free.release(2)
    assert first.result(PATIENCE).status_code == 200
    assert second.result(PATIENCE).status_code == 200
    assert turnstile.order == ["first", "second"]


def test_wait_ends_if_the_user_revokes(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app, "first")
    turnstile.wait()
    second = later(pool, app, "second")
    waits(app)
    answer = app.http.delete("/connections", headers=bearer(app.token()))
    assert answer.status_code == 204
    assert error_in(second.result(PATIENCE))["code"] == "not_connected"
    turnstile.free.release()
    assert first.result(PATIENCE).status_code == 402
    assert turnstile.order == ["first"]


def test_raised_cap_admits_a_waiting_call(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app, "first")
    turnstile.wait()
    second = later(pool, app, "second")
    app.connect(monthlyUsd=1)
    turnstile.wait()  # the second call is at the upstream, beside the first
    turnstile.free.release(2)
    for call in (first, second):
        assert call.result(PATIENCE).status_code == 200


def test_wait_ends_if_the_service_stops(
    tmp_path: Path, fake: Upstream, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    running = run_service(tmp_path, "--upstream", fake.url, "--metrics", stop_grace=0.2)
    with running as service, service.app() as app:
        app.connect(monthlyUsd=0.0022)
        first = pool.submit(ask, app, "first")
        turnstile.wait()
        second = later(pool, app, "second")
        waits(app)
        began = time.monotonic()
        service.stop()
        assert error_in(second.result(PATIENCE), 503)["code"] == "upstream"
        assert time.monotonic() - began < 30
        assert first.result(PATIENCE).status_code in (200, 503)
    assert turnstile.order == ["first"]


def test_call_that_ends_in_another_process_admits_a_waiting_call(
    tmp_path: Path, fake: Upstream, database: str, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    from wattfare_mw.service.ledger.databases import migrate_database

    migrate_database(database)
    run: Callable[..., Any] = lambda: run_service(  # noqa: E731
        tmp_path, "--upstream", fake.url, database=database
    )
    with run() as one, run() as two, one.app() as app:
        app.connect(monthlyUsd=0.0022)
        first = pool.submit(ask, app, "first")
        turnstile.wait()
        with App(two, app.keys) as same:
            error = error_in(ask(same), 429)
            assert "The oldest has run for" in error["message"]
            second = later(pool, same, "second")
            turnstile.free.release(2)
            assert first.result(PATIENCE).status_code == 200
            assert second.result(PATIENCE).status_code == 200


@pytest.mark.parametrize("value", ["61", "-1", "soon", "", "1e1", "nan", "inf", "0x1", "9" * 400])
def test_wait_header_must_be_a_number_of_seconds(app: App, value: str) -> None:
    app.connect(monthlyUsd=1)
    error = error_in(ask(app, headers={"x-wattfare-wait": value}), 400)
    assert error["message"] == "X-Wattfare-Wait must be a number of seconds up to 60."


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_middleware_forwards_the_wait_header(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor, kind: str
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app)
    turnstile.wait()
    with (
        middleware(app, kind) as url,
        http_client() as http,
    ):
        path, body = f"{url}/api/wattfare/chat/completions", chat_body(**CALL)
        error = error_in(http.post(path, json=body), 429)
        assert error["limitedBy"] == "in_flight"
        second = pool.submit(http.post, path, json=body, headers=WAIT)
        turnstile.free.release(2)
        assert first.result(PATIENCE).status_code == 200
        assert second.result(PATIENCE).status_code == 200


def test_client_sends_its_wait_option(
    app: App, turnstile: Turnstile, pool: ThreadPoolExecutor
) -> None:
    app.connect(monthlyUsd=0.0022)
    first = pool.submit(ask, app)
    turnstile.wait()
    with wattfare_mw.Wattfare(app.keys.secret_key, base_url=app.service.url) as wf:
        model = wf.user("u1").model("fake/model", wait=20)
        second = pool.submit(model.generate, "hello", max_tokens=1000)
        turnstile.free.release(2)
        assert first.result(PATIENCE).status_code == 200
        assert second.result(PATIENCE).text == "one two three"
        for wrong in (-1, 61, "20", True, None):
            with pytest.raises(ValueError, match="number of seconds"):
                wf.user("u1").model("fake/model", wait=wrong)
