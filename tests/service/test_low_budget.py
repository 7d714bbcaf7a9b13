"""If the budget covers less than the request, the limit is lowered and the answer says so, or the
call is refused if the client prefers that. Also models without a price."""

from __future__ import annotations

from decimal import Decimal

import pytest
from support.service import App, Service, chat_body, run_service
from support.upstream import Exchange, Upstream, completion_of, good

from wattfare_mw.service.chat import prompt_bound
from wattfare_mw.service.chat.request import FLOOR_TOKENS

REFUSE = {"x-wattfare-on-low-budget": "refuse"}
WORDS = " ".join(f"w{number}" for number in range(100))
#: Prices of fake/model and the built-in model, in nano-dollars.
PROMPT_PRICE, COMPLETION_PRICE = 1000, 2000


def usd(nanos: int) -> float:
    return float(Decimal(nanos) / 10**9)


def chat(app: App, headers: dict[str, str] | None = None, **fields):
    return app.http.post(
        "/chat/completions",
        json=chat_body(**fields),
        headers={**app.paid_by("u1"), **(headers or {})},
    )


def code(answer) -> str:
    return answer.json()["error"]["code"]


@pytest.fixture
def far(forwarding: Service, upstream: Upstream):
    """An app in front of the fake upstream."""
    upstream.script = good
    upstream.calls.clear()
    app = forwarding.app()
    yield app
    app.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("left", [FLOOR_TOKENS, 60, 99])
def test_builtin_model_shortens_its_answer(app: App, stream: bool, left: int) -> None:
    app.connect(monthlyUsd=usd(100 * PROMPT_PRICE + left * COMPLETION_PRICE + 1999))
    answer = chat(app, text=WORDS, stream=stream)
    assert answer.headers["x-wattfare-max-tokens"] == str(left)
    assert '"finish_reason":"length"' in answer.text
    assert f"w{left - 1}" in answer.text
    assert f"w{left} " not in answer.text
    assert app.status()["usage"]["monthlyUsd"] == usd(100 * PROMPT_PRICE + left * COMPLETION_PRICE)


@pytest.mark.parametrize(
    ("left", "fields", "headers"),
    [
        (FLOOR_TOKENS - 1, {}, {}),
        (99, {}, REFUSE),
        (49, {"max_tokens": 50}, REFUSE),
        (4, {"max_tokens": 5}, {}),
    ],
)
def test_limit_below_the_minimum_is_refused(
    app: App, left: int, fields: dict, headers: dict
) -> None:
    app.connect(monthlyUsd=usd(100 * PROMPT_PRICE + left * COMPLETION_PRICE))
    answer = chat(app, headers, text=WORDS, **fields)
    assert (answer.status_code, code(answer)) == (402, "budget_exceeded")
    assert app.status()["usage"]["monthlyUsd"] == 0


@pytest.mark.parametrize("headers", [{}, REFUSE, {"x-wattfare-on-low-budget": "lower"}])
def test_affordable_limit_is_not_lowered(app: App, headers: dict) -> None:
    app.connect(monthlyUsd=usd(100 * PROMPT_PRICE + 100 * COMPLETION_PRICE))
    answer = chat(app, headers, text=WORDS)
    assert answer.status_code == 200
    assert "x-wattfare-max-tokens" not in answer.headers
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_invalid_low_budget_header_is_refused(app: App) -> None:
    app.connect()
    answer = chat(app, {"x-wattfare-on-low-budget": "Refuse!"})
    assert (answer.status_code, code(answer)) == (400, "invalid_request")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", None])
@pytest.mark.parametrize("n", [1, 3])
def test_upstream_gets_the_lowered_limit(
    far: App, upstream: Upstream, name: str | None, n: int
) -> None:
    asked = {name: 5000} if name else {}
    asked |= {"n": n} if n > 1 else {}
    body = chat_body(model="fake/model", **asked)
    far.connect(
        monthlyUsd=usd(prompt_bound.bound(body) * PROMPT_PRICE + n * 40 * COMPLETION_PRICE + 1)
    )
    answer = chat(far, model="fake/model", **asked)
    assert answer.headers["x-wattfare-max-tokens"] == "40"
    assert upstream.calls[0].json == {**body, name or "max_tokens": 40}


def test_minimum_applies_to_each_answer(far: App, upstream: Upstream) -> None:
    asked = {"model": "fake/model", "n": 3}
    bound = prompt_bound.bound(chat_body(**asked)) * PROMPT_PRICE
    far.connect(monthlyUsd=usd(bound + 3 * FLOOR_TOKENS * COMPLETION_PRICE - 1))
    assert code(chat(far, **asked)) == "budget_exceeded"
    far.connect(monthlyUsd=usd(bound + 3 * FLOOR_TOKENS * COMPLETION_PRICE))
    assert chat(far, **asked).headers["x-wattfare-max-tokens"] == str(FLOOR_TOKENS)


def test_thinking_keeps_its_share(far: App, upstream: Upstream) -> None:
    asked = {"model": "fake/model", "max_tokens": 5000, "reasoning": {"max_tokens": 1024}}
    bound = prompt_bound.bound(chat_body(**asked)) * PROMPT_PRICE
    least = 1024 + FLOOR_TOKENS
    far.connect(monthlyUsd=usd(bound + least * COMPLETION_PRICE - 1))
    assert code(chat(far, **asked)) == "budget_exceeded"
    far.connect(monthlyUsd=usd(bound + least * COMPLETION_PRICE))
    assert chat(far, **asked).headers["x-wattfare-max-tokens"] == str(least)
    assert upstream.calls[0].json["max_tokens"] == least
    # If thinking may use the whole limit, the limit is not lowered.
    assert code(chat(far, **{**asked, "max_tokens": 5000, "reasoning": {"max_tokens": 5000}})) == (
        "budget_exceeded"
    )


def test_expensive_provider_is_not_chosen(far: App, upstream: Upstream) -> None:
    far.connect()
    assert chat(far, model="fake/model", provider={"order": ["dear"]}).status_code == 200
    assert upstream.calls[0].json["provider"] == {
        "order": ["dear"],
        "max_price": {"prompt": 1, "completion": 2, "request": 0},
    }


def test_lower_max_price_of_the_client_is_kept(far: App, upstream: Upstream) -> None:
    far.connect()
    asked = {"max_price": {"prompt": "0.5", "completion": 99, "image": 0.1}}
    assert chat(far, model="fake/model", provider=asked).status_code == 200
    assert upstream.calls[0].json["provider"] == {
        "max_price": {"prompt": 0.5, "completion": 2, "request": 0, "image": 0.1}
    }


def test_operators_default_for_low_budgets(tmp_path, upstream: Upstream) -> None:
    upstream.script = good
    upstream.calls.clear()
    options = ("--upstream", upstream.url, "--default-max-tokens", "77")
    with run_service(tmp_path, *options) as service:
        app = service.app()
        app.connect(monthlyUsd=1)
        assert chat(app, model="fake/model").status_code == 200
        assert chat(app, model="fake/model", max_tokens=99).status_code == 200
        app.close()
    assert [call.json["max_tokens"] for call in upstream.calls] == [77, 99]


def test_call_without_a_price_reserves_all_that_is_left(tmp_path, upstream: Upstream) -> None:
    """A call whose cost is not reported costs nothing."""
    upstream.calls.clear()
    held: list[int] = []

    def script(exchange: Exchange) -> None:
        # While this call runs, nothing is left for another.
        held.append(chat(app, model="fake/router").status_code if not held else 0)
        exchange.answer(completion_of("x", usage={"cost": 0.25}))

    with run_service(tmp_path, "--upstream", upstream.url, "--allow-unpriced") as service:
        app = service.app()
        app.connect()
        refused = chat(app, model="fake/router")
        assert (refused.status_code, code(refused)) == (400, "invalid_request")
        assert "cap" in refused.text
        assert upstream.calls == []

        app.connect(monthlyUsd=1)
        upstream.script = script
        assert chat(app, model="fake/router").status_code == 200
        assert held == [429]
        assert app.status()["remainingUsd"] == 0.75
        assert chat(app, model="fake/model").status_code == 200
        left = 0.75 - usd(app_cost(upstream))
        assert app.status()["remainingUsd"] == left
        upstream.script = lambda exchange: exchange.answer(completion_of("x"))
        assert chat(app, model="fake/unpriced").status_code == 200
        assert app.status()["remainingUsd"] == left
        app.close()


def app_cost(upstream: Upstream) -> int:
    """The app's cost of a call to fake/model that reports a quarter of a dollar: its whole
    reservation."""
    return prompt_bound.bound(upstream.calls[-1].json) * PROMPT_PRICE + 8192 * COMPLETION_PRICE
