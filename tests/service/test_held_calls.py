"""Calls whose cost has no bound: each reserves an amount and is billed its true cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import RowMapping
from support.drivers import INFERENCE, asgi_app
from support.http_client import fetch
from support.patience import PATIENCE
from support.servers import uvicorn_server
from support.service import App, Service, chat_body, eventually, run_service
from support.upstream import Exchange, Script, Upstream, chunk_of, reporting

from wattfare_mw import WattfareMiddleware
from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat.price import Price, Rates
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.models import own_tools
from wattfare_mw.service.settings import Settings

MODEL = {"model": "fake/model", "max_tokens": 20}
TOKENS = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
#: One field of each kind. `test_fields.py` has them all.
HELD: dict[str, dict[str, Any]] = {
    "a plugin": {"plugins": [{"id": "web"}]},
    "a tool of the provider": {"tools": [{"type": "web_search"}]},
    "another tier": {"service_tier": "priority"},
    "a preset": {"preset": "mine"},
    "a preset in the model": {"model": "fake/model@preset/mine"},
    "a preset as the model": {"model": "@preset/mine"},
    "a router": {"model": "fake/router"},
    "a model without a price": {"model": "fake/unpriced"},
    "an image": {"modalities": ["image", "text"], "image_config": {"aspect_ratio": "1:1"}},
    "a model that searches": {"model": "fake/deep-research"},
    "a cache for an hour": {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
}


def costing(usd: float) -> Script:
    """A script whose answer has this cost."""
    return reporting({**TOKENS, "cost": usd})


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, _upstream: Upstream) -> Iterator[Service]:
    """An app in front of an upstream that reports each cost. A call reserves half a dollar."""
    options = ("--upstream", _upstream.url, "--provider", "openrouter", "--metrics")
    options += ("--price", "fake/free=0/0")
    with run_service(
        tmp_path_factory.mktemp("held"), *options, "--unbounded-hold-usd", "0.5"
    ) as running:
        yield running
    assert read_database(running.database, verify) == []


@pytest.fixture
def app(held: Service) -> Iterator[App]:
    with held.app() as app:
        app.connect(monthlyUsd=2)
        yield app


def row_of(app: App) -> RowMapping:
    """The row of the app's last call."""
    rows = read_database(
        app.service.database, lambda sql: list(rows_of(sql, app_id=app.keys.app_id))
    )
    return rows[-1]


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", HELD.values(), ids=HELD)
def test_unbounded_call_reserves_an_amount_and_is_billed_its_cost(
    app: App, upstream: Upstream, fields: dict[str, Any], stream: bool
) -> None:
    upstream.script = costing(0.0321)
    answer = app.chat(**{**MODEL, **fields}, stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-wattfare-reserved"] == "0.5"
    assert "x-wattfare-max-tokens" not in answer.headers
    assert app.status()["usage"]["monthlyUsd"] == 0.0321
    row = row_of(app)
    assert (row["reserved_nanos"], row["billed_nanos"]) == (5 * 10**8, 32_100_000)
    sent = upstream.calls[-1].json
    assert {name: sent[name] for name in fields} == fields


def test_plain_call_reserves_no_such_amount(app: App, upstream: Upstream) -> None:
    answer = app.chat(**MODEL)
    assert answer.status_code == 200
    assert "x-wattfare-reserved" not in answer.headers
    assert row_of(app)["reserved_nanos"] < 10**6


def overrun(app: App) -> dict[str, float]:
    """The overrun that the service has counted."""
    text = app.http.get(f"{app.service.url}/metrics").text
    lines = (line.split() for line in text.splitlines() if "_overrun_" in line and line[0] != "#")
    return {name.partition("_overrun_")[2]: float(value) for name, value in lines}


@pytest.mark.parametrize("stream", [False, True])
def test_operator_pays_what_exceeds_the_reservation(
    app: App, upstream: Upstream, stream: bool
) -> None:
    before = overrun(app)
    upstream.script = costing(0.75)
    assert app.chat(**MODEL, plugins=[{"id": "web"}], stream=stream).status_code == 200
    row = row_of(app)
    assert (row["billed_nanos"], row["claimed_nanos"]) == (5 * 10**8, 75 * 10**7)
    assert app.status()["usage"]["monthlyUsd"] == 0.5
    more = {name: value - before[name] for name, value in overrun(app).items()}
    assert more["calls_total"] == 1
    assert more["usd_total"] == pytest.approx(0.25)


def test_record_above_the_reservation_is_counted(app: App, upstream: Upstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        delta = {"index": 0, "delta": {"content": "one"}}
        exchange.event(chunk_of({"id": "gen-1", "choices": [delta]}))
        exchange.hang()

    upstream.script = script
    upstream.record_script = lambda exchange: exchange.answer({"data": {"total_cost": 0.75}})
    before = overrun(app)
    body = chat_body(**MODEL, plugins=[{"id": "web"}], stream=True)
    with app.http.stream(
        "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
    ) as answer:
        next(answer.iter_raw())
    eventually(lambda: overrun(app) != before)
    assert overrun(app)["usd_total"] - before["usd_total"] == pytest.approx(0.25)
    assert row_of(app)["billed_nanos"] == 5 * 10**8


def test_unbounded_call_reserves_what_is_left(app: App, upstream: Upstream) -> None:
    """The budget is used to its last nano-dollar."""
    app.connect("poor", monthlyUsd=0.6)
    upstream.script = costing(0.4)
    held = {**MODEL, "plugins": [{"id": "web"}]}
    first = app.chat(user="poor", **held)
    assert first.headers["x-wattfare-reserved"] == "0.5"
    second = app.chat(user="poor", **held)
    assert second.headers["x-wattfare-reserved"] == "0.2"
    assert app.status("poor")["remainingUsd"] == 0
    assert app.status("poor")["usage"]["monthlyUsd"] == 0.6
    status, code, _ = error_of(app.chat(user="poor", **held))
    assert (status, code) == (402, "budget_exceeded")


@pytest.mark.parametrize("model", ["fake/model", "fake/unpriced", "fake/free"])
def test_empty_budget_refuses_an_unbounded_call(app: App, upstream: Upstream, model: str) -> None:
    """A plugin costs money even if the model is free."""
    upstream.calls.clear()
    app.connect("broke", monthlyUsd=0)
    answer = app.chat(user="broke", model=model, plugins=[{"id": "web"}])
    assert error_of(answer)[:2] == (402, "budget_exceeded")
    assert upstream.calls == []


def test_ordinary_bound_above_the_amount_is_reserved(app: App, upstream: Upstream) -> None:
    upstream.script = costing(0.7)
    answer = app.chat(model="fake/model", max_tokens=400_000, plugins=[{"id": "web"}])
    reserved = Decimal(answer.headers["x-wattfare-reserved"])
    assert 0.8 < reserved < 0.81
    assert app.status()["usage"]["monthlyUsd"] == 0.7


def test_two_concurrent_calls_reserve_two_amounts(app: App, upstream: Upstream) -> None:
    """Only as many calls are admitted as the cap allows."""
    app.connect("two", monthlyUsd=0.5)
    seen: list[httpx.Response] = []

    def script(exchange: Exchange) -> None:
        upstream.script = costing(0.1)
        seen.append(app.chat(user="two", **MODEL, plugins=[{"id": "web"}]))
        costing(0.1)(exchange)

    upstream.script = script
    assert app.chat(user="two", **MODEL, plugins=[{"id": "web"}]).status_code == 200
    assert [answer.status_code for answer in seen] == [429]


def test_disconnected_client_pays_for_the_search(tmp_path: Path, upstream: Upstream) -> None:
    """An upstream without records reports the cost at the end, so the stream is read to its end."""
    gone = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        assert gone.wait(PATIENCE)
        exchange.usage({**TOKENS, "cost": 0.02})
        exchange.done()

    upstream.script = script
    with run_service(tmp_path, "--upstream", upstream.url) as service, service.app() as app:
        app.connect(monthlyUsd=2)
        body = chat_body(**MODEL, plugins=[{"id": "web"}], stream=True)
        with app.http.stream(
            "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
        ) as answer:
            next(answer.iter_raw())
        gone.set()
        eventually(lambda: app.status()["usage"]["monthlyUsd"])
        assert app.status()["usage"]["monthlyUsd"] == 0.02
        assert row_of(app)["ended"] == "completed"


def test_unbounded_call_needs_a_cap(app: App, upstream: Upstream) -> None:
    app.connect("unlimited")
    upstream.calls.clear()
    status, code, message = error_of(app.chat(user="unlimited", **MODEL, preset="mine"))
    assert (status, code) == (400, "invalid_request")
    assert "`preset`" in message
    assert "--user-ceiling-usd" in message
    assert "`model`" in app.chat(user="unlimited", model="fake/router").text
    assert upstream.calls == []
    assert app.chat(user="unlimited", **MODEL).status_code == 200


@pytest.mark.parametrize(
    ("model", "held"),
    [
        ("sonar-deep-research", True),
        ("openai/o4-mini-deep-research-2025-06-26", True),
        ("perplexity/sonar-pro-search", True),
        ("gpt-4o-mini-search-preview", True),
        ("openai/gpt-5-search-api", True),
        ("groq/compound-mini", True),
        ("compound-beta", True),
        ("x-ai/grok-4.20-multi-agent:nitro", True),
        ("perplexity/sonar-pro", False),
        ("openai/gpt-5", False),
        ("compoundlabs/writer", False),
        ("relace/relace-search", False),
    ],
)
def test_models_that_search_by_themselves_have_no_bound(model: str, held: bool) -> None:
    assert own_tools.is_open_ended(model) is held


@pytest.mark.parametrize(
    ("model", "listed", "fees"),
    [
        # The list has the fee of the one search.
        ("perplexity/sonar-pro", {"search": Decimal("0.005")}, ("0.005", None)),
        ("openai/gpt-4o-search-preview", {"search": Decimal("0.035")}, ("0.035", None)),
        ("gpt-4o-mini-search-preview", {"search": Decimal("0.01")}, ("0.025", None)),
        ("gpt-5-search-api", {}, ("0.01", None)),
        ("sonar", {"request": Decimal("0.012")}, ("0.012", None)),
        ("sonar", {}, (None, None)),
        ("openai/gpt-5", {"search": Decimal("0.01")}, (None, "0.01")),
    ],
)
def test_search_of_each_call_is_part_of_the_price(model: str, listed: Any, fees: Any) -> None:
    price = Price(Rates(prompt=Decimal(1), completion=Decimal(2), **listed))
    rates = own_tools.with_fee(model, price).rates
    assert (rates.request, rates.search) == tuple(fee and Decimal(fee) for fee in fees)


def test_operators_ceiling_counts_as_a_cap(tmp_path: Path, upstream: Upstream) -> None:
    options = ("--upstream", upstream.url, "--provider", "openrouter", "--user-ceiling-usd", "0.3")
    env = {"WATTFARE_UPSTREAM_KEY": "sk-or-v1-0123456789abcdef"}
    with run_service(tmp_path, *options, env=env) as service, service.app() as app:
        app.connect()
        answer = app.chat(**MODEL, preset="mine")
        assert answer.headers["x-wattfare-reserved"] == "0.3"


def test_grant_reserves_an_amount_too(app: App, upstream: Upstream) -> None:
    upstream.script = costing(0.2)
    made = app.http.post(
        "/grants",
        json={"requests": 2, "maxUsd": 0.25},
        headers={"authorization": f"Bearer {app.keys.publishable_key}"},
    ).json()
    headers = {**app.auth, "x-wattfare-grant": made["grantToken"]}
    body = chat_body(**MODEL, plugins=[{"id": "web"}])
    reserved = [
        app.http.post("/chat/completions", json=body, headers=headers).headers[
            "x-wattfare-reserved"
        ]
        for _ in range(2)
    ]
    assert reserved == ["0.25", "0.05"]


def test_middleware_forwards_the_header(app: App, upstream: Upstream) -> None:
    around = WattfareMiddleware(
        asgi_app,
        resolve_user=lambda request: "u1",
        secret_key=app.keys.secret_key,
        base_url=app.service.url,
        allowed_origins=["https://app.example"],
    )
    with uvicorn_server(around) as address:
        answer = fetch(
            f"http://{address[0]}:{address[1]}{INFERENCE}",
            "POST",
            json=chat_body(**MODEL, plugins=[{"id": "web"}]),
            headers={"origin": "https://app.example"},
        )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-wattfare-reserved"] == "0.5"
    assert "x-wattfare-reserved" in answer.headers["access-control-expose-headers"]


def test_builtin_model_reserves_an_amount_too(service: Service) -> None:
    with service.app() as app:
        app.connect(monthlyUsd=3)
        answer = app.chat("one two", plugins=[{"id": "web"}])
        assert answer.headers["x-wattfare-reserved"] == "1"
        assert app.status()["usage"]["monthlyUsd"] == 0.000006


def test_unbounded_refuse_option_refuses_such_calls(tmp_path: Path, upstream: Upstream) -> None:
    options = ("--upstream", upstream.url, "--provider", "openrouter", "--unbounded", "refuse")
    with run_service(tmp_path, *options) as service, service.app() as app:
        app.connect(monthlyUsd=2)
        for name, fields in HELD.items():
            status, code, message = error_of(app.chat(**{**MODEL, **fields}))
            assert (status, code) == (400, "invalid_request"), name
            assert next(iter(fields.values())) in ("fake/router", "fake/unpriced") or (
                f"`{next(iter(fields))}" in message
            )
        assert upstream.calls == []
        assert app.chat(**MODEL).status_code == 200


def test_unknown_fields_pass_with_the_option(tmp_path: Path, upstream: Upstream) -> None:
    upstream.script = costing(0.1)
    options = ("--upstream", upstream.url)
    env = {"WATTFARE_UNKNOWN_FIELDS": "pass", "WATTFARE_UNBOUNDED_HOLD_USD": "0.25"}
    with run_service(tmp_path, *options, env=env) as service, service.app() as app:
        app.connect(monthlyUsd=2)
        answer = app.chat(**MODEL, something_new={"a": 1})
        assert answer.headers["x-wattfare-reserved"] == "0.25"
        assert upstream.calls[-1].json["something_new"] == {"a": 1}
        upstream.calls.clear()
        for name in ("api_base", "api_key", "callbacks", "fallbacks"):
            _, _, message = error_of(app.chat(**MODEL, **{name: "x"}))
            assert f"`{name}` is never allowed" in message
        assert upstream.calls == []


@pytest.mark.parametrize(
    "settings",
    [
        {"unbounded": "refuse", "unknown_fields": "pass"},
        {"unbounded": "no"},
        {"unknown_fields": "no"},
        {"unbounded_hold": 0},
        {"unbounded_hold": 10**15 + 1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WattfareError):
        Settings(**settings)
