"""The fixture `wattfare`, as an app's own tests use it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import openai
import pytest
from support.http_client import fetch, http_client

from wattfare_mw import (
    AsyncWattfare,
    ToolCall,
    Wattfare,
    WattfareAuthError,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    is_budget_exceeded,
)
from wattfare_mw.testing import SharedService, WattfareService, servers
from wattfare_mw.testing.address import Address
from wattfare_mw.testing.servers import first_server

FOUR_WORDS = "Say hello to Ann"
#: Four words sent, and the same four returned.
PRICE = Decimal("0.000012")


def ask(wattfare: WattfareService, user: str = "ann", **options: Any) -> Any:
    return wattfare.client().user(user).model("openai/gpt-5").generate(FOUR_WORDS, **options)


def read_stream(wattfare: WattfareService, user: str = "ann") -> Iterator[str]:
    with wattfare.client().user(user).model("openai/gpt-5").stream(FOUR_WORDS) as stream:
        yield from stream.text_stream


# -- one app per test


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_app_without_users(turn: int, wattfare: WattfareService) -> None:
    assert wattfare.calls == []
    assert wattfare.billed() == 0
    assert wattfare.user("ann").status().connected is False
    wattfare.user("ann").connect(5)
    ask(wattfare)
    assert wattfare.billed("ann") == PRICE
    wattfare.clock.advance(days=40)
    wattfare.reply("what no other test hears")
    wattfare.fail("upstream")


def test_environment_is_set_for_the_test_and_restored(wattfare: WattfareService) -> None:
    outer = dict(os.environ)
    assert outer["WATTFARE_SECRET_KEY"] == wattfare.secret_key
    assert outer["WATTFARE_BASE_URL"] == wattfare.url
    assert outer["WATTFARE_PUBLISHABLE_KEY"] == wattfare.publishable_key
    with WattfareService() as inner:
        assert inner.url != wattfare.url
        assert os.environ["WATTFARE_SECRET_KEY"] == inner.secret_key
    assert dict(os.environ) == outer
    with WattfareService(set_environment=False):
        assert dict(os.environ) == outer


def test_proxy_of_the_machine_is_not_used(
    wattfare: WattfareService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.com")
    with WattfareService() as inner:
        assert os.environ["NO_PROXY"] == "example.com,127.0.0.1"
        inner.user("ann").connect(5)
        ask(inner)
    assert os.environ["NO_PROXY"] == "example.com"


def test_app_created_earlier_calls_as_the_app_of_each_test(
    wattfare_service: SharedService,
) -> None:
    key, url = wattfare_service.secret_key, wattfare_service.url
    with Wattfare(key, base_url=url) as made_once:
        model = made_once.user("ann").model("openai/gpt-5")
        for _ in range(2):
            with WattfareService() as wattfare:
                assert wattfare.url == url
                with pytest.raises(WattfareNotConnectedError):
                    model.generate(FOUR_WORDS)
                wattfare.user("ann").connect(5)
                model.generate(FOUR_WORDS)
                assert made_once.user("ann").status().connected
                assert wattfare.billed("ann") == PRICE
        with pytest.raises(WattfareAuthError, match="No test is using this service"):
            model.generate(FOUR_WORDS)


def test_key_of_a_finished_test_is_refused() -> None:
    with WattfareService() as over:
        over.user("ann").connect(5)
        straggler = Wattfare(over.secret_key, base_url=over.url)
        token = straggler.create_session("ann").token
    with straggler, WattfareService() as wattfare:
        wattfare.user("ann").connect(5)
        with pytest.raises(WattfareAuthError, match="has ended"):
            straggler.user("ann").model("openai/gpt-5").generate(FOUR_WORDS)
        answer = fetch(
            f"{wattfare.url}/api/v1/connections", headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 401
        assert (wattfare.calls, wattfare.billed()) == ([], 0)


def test_next_service_starts_no_thread_and_no_server() -> None:
    with WattfareService():
        before = set(threading.enumerate())
        server = first_server()
    for _ in range(3):
        with WattfareService() as wattfare:
            wattfare.user("ann").connect(5)
    assert set(threading.enumerate()) <= before
    assert first_server() is server
    assert server._thread.daemon


def test_two_services_at_once_share_nothing(wattfare: WattfareService) -> None:
    with WattfareService(set_environment=False) as other:
        other.clock.advance(days=40)
        other.reply("from the other")
        wattfare.user("ann").connect(5)
        assert ask(wattfare).text == FOUR_WORDS
        assert (other.billed(), other.calls) == (0, [])
        assert abs(wattfare.clock.now() - other.clock.now()) > timedelta(days=39)
        wrong = Wattfare(wattfare.secret_key, base_url=other.url)
        with wrong, pytest.raises(WattfareAuthError):
            wrong.user("ann").status()


def test_closed_service_raises() -> None:
    service = WattfareService()
    with pytest.raises(RuntimeError, match="with WattfareService"):
        service.billed()
    with service, pytest.raises(RuntimeError, match="already open"):
        service.open()
    service.close()
    with service as again:
        assert again.billed() == 0


def test_reprs_hide_secrets(wattfare: WattfareService, wattfare_service: SharedService) -> None:
    wattfare.user("ann").connect(5)
    ask(wattfare)
    with wattfare.client() as wf:
        wf.grant(wattfare.grant()).model("openai/gpt-5").generate("x")
    shown = repr(
        [wattfare, wattfare_service, wattfare.user("ann"), wattfare.calls, wattfare.clock]
        + [first_server().address, vars(wattfare), wattfare.secret_key]
        + [call.headers for call in wattfare.calls]
    )
    assert "sk_test" not in shown
    assert "gt_" not in shown


# -- budgets


def test_budget_methods(wattfare: WattfareService) -> None:
    ann = wattfare.user("ann")
    with pytest.raises(WattfareNotConnectedError):
        ask(wattfare)

    ann.connect("0.02").spend_to("0.01")
    assert ann.billed == Decimal("0.01")
    assert ann.status().remaining_usd == Decimal("0.01")
    ann.spend_to("0.01").spend("0.001").spend_to(left="0.000011")
    assert ann.billed == Decimal("0.019989")
    with pytest.raises(WattfareBudgetExceededError) as refused:
        ask(wattfare, max_tokens=4)
    assert refused.value.remaining_usd == Decimal("0.000011")

    ann.connect(5).fund_fails()
    for _ in range(2):
        with pytest.raises(WattfareFundingError):
            ask(wattfare)
    assert ann.status().connected
    assert ann.billed == Decimal("0.019989")
    ann.connect()
    ask(wattfare)
    assert ann.status().remaining_usd is None

    ann.revoke()
    with pytest.raises(WattfareNotConnectedError):
        ask(wattfare)
    assert not ann.status().connected
    assert ann.billed == Decimal("0.020001")


def test_fund_fails_connects_a_new_user(wattfare: WattfareService) -> None:
    wattfare.user("ann").fund_fails()
    with pytest.raises(WattfareFundingError):
        ask(wattfare)


def test_impossible_spending_raises(wattfare: WattfareService) -> None:
    ann = wattfare.user("ann")
    with pytest.raises(WattfareNotConnectedError, match="connect"):
        ann.spend_to(1)
    with pytest.raises(WattfareNotConnectedError):
        ann.spend(1)
    ann.connect(1)
    with pytest.raises(WattfareBudgetExceededError):
        ann.spend("1.01")
    ann.spend("0.5")
    with pytest.raises(ValueError, match=r"has already spent 0\.5 USD"):
        ann.spend_to("0.4")
    with pytest.raises(ValueError, match="Pass either"):
        ann.spend_to()
    ann.connect(None)
    with pytest.raises(ValueError, match="no cap"):
        ann.spend_to(left=1)
    assert ann.billed == Decimal("0.5")


@pytest.mark.parametrize("amount", ["five", "", "NaN", -1, True, "1e99", "0.0000000001", 10**10])
def test_invalid_amount_raises(wattfare: WattfareService, amount: Any) -> None:
    with pytest.raises(ValueError, match="USD"):
        wattfare.user("ann").connect(amount)


@pytest.mark.parametrize("user", [7, uuid.UUID(int=7), "7", "zoë & co", "a%20b"])
def test_valid_user_ids(wattfare: WattfareService, user: Any) -> None:
    wattfare.user(user).connect(5)
    ask(wattfare, user=str(user))
    assert wattfare.billed(user) == PRICE
    assert wattfare.calls[0].user == str(user)


@pytest.mark.parametrize("user", [None, True, "", "x" * 300])
def test_invalid_user_id_raises(wattfare: WattfareService, user: Any) -> None:
    with pytest.raises(WattfareError, match="user id"):
        wattfare.user(user)


def test_grant_pays_for_its_requests(wattfare: WattfareService) -> None:
    with wattfare.client() as wf:
        model = wf.grant(wattfare.grant(requests=1, max_usd="0.5")).model("openai/gpt-5")
        model.generate(FOUR_WORDS)
        with pytest.raises(WattfareGrantError):
            model.generate(FOUR_WORDS)
    assert wattfare.billed() == PRICE
    assert [(call.user, call.error) for call in wattfare.calls] == [
        (None, None),
        (None, "grant_invalid"),
    ]


def test_browser_can_connect(wattfare: WattfareService) -> None:
    token = wattfare.client().create_session("ann", request_limit=3).token
    answer = fetch(
        f"{wattfare.url}/api/v1/connections", "POST", headers={"authorization": f"Bearer {token}"}
    )
    assert answer.json()["limits"] == {"monthlyUsd": 3.0}
    assert wattfare.user("ann").status().remaining_usd == 3


# -- the model


def test_replies_come_in_turn_and_the_last_one_stays(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    assert ask(wattfare).text == FOUR_WORDS
    wattfare.reply("one")
    wattfare.reply("two", times=2)
    wattfare.reply("three")
    assert [ask(wattfare).text for _ in range(5)] == ["one", "two", "two", "three", "three"]
    wattfare.reply({"city": "Paris"}, times=1)  # in place of the reply already used
    assert [ask(wattfare).text for _ in range(2)] == ['{"city":"Paris"}', FOUR_WORDS]
    with pytest.raises(ValueError, match="times"):
        wattfare.reply("x", times=0)


@pytest.mark.parametrize("text", ["", " ", "one", " two  words\n", "a\n\n\tb", "naïve ☕ text"])
def test_reply_arrives_unchanged(wattfare: WattfareService, text: str) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply(text)
    assert ask(wattfare).text == text
    assert "".join(read_stream(wattfare)) == text
    assert [call.text for call in wattfare.calls] == [text, text]


def test_stream_arrives_word_by_word(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("one two three")
    assert list(read_stream(wattfare)) == ["one ", "two ", "three"]
    assert wattfare.billed("ann") == Decimal("0.00001")


def test_refused_call_uses_no_reply(wattfare: WattfareService) -> None:
    wattfare.reply("one", times=1)
    with pytest.raises(WattfareNotConnectedError):
        ask(wattfare)
    wattfare.user("ann").connect(5)
    assert ask(wattfare).text == "one"


def test_tokens_and_cost_can_be_set(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("ok", cost="0.002", times=1)
    assert ask(wattfare).cost_usd == Decimal("0.002")
    wattfare.reply("ok", prompt_tokens=1000, completion_tokens=500)
    answer = ask(wattfare, max_tokens=1000)
    assert answer.cost_usd == Decimal("0.002")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1000, 500)
    assert list(read_stream(wattfare)) == ["ok"]
    assert wattfare.billed("ann") == Decimal("0.006")
    assert wattfare.calls[-1].completion_tokens == 500
    wattfare.user("ann").connect("0.007")
    with pytest.raises(WattfareBudgetExceededError):
        ask(wattfare)


def test_nearly_spent_budget_shortens_an_answer(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect("0.00004")
    wattfare.reply("word " * 100)
    answer = ask(wattfare)
    assert (answer.finish_reason, len(answer.text.split())) == ("length", 18)
    assert wattfare.billed("ann") == Decimal("0.00004")


@pytest.mark.parametrize(
    "given",
    [
        ("get_weather", {"city": "Paris"}),
        ToolCall("call_1", "get_weather", '{"city": "Paris"}'),
        {"name": "get_weather", "arguments": {"city": "Paris"}},
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        },
    ],
    ids=["pair", "ToolCall", "flat", "as the API has it"],
)
def test_tool_calls(wattfare: WattfareService, given: Any) -> None:
    wattfare.user("ann").connect(5)
    expected = (ToolCall("call_1", "get_weather", '{"city": "Paris"}'),)
    wattfare.reply(tool_calls=[given])
    answer = ask(wattfare)
    assert (answer.tool_calls, answer.finish_reason) == (expected, "tool_calls")
    assert ask(wattfare).text == FOUR_WORDS  # it is returned once

    wattfare.reply("Let me see.", tool_calls=[given])
    if isinstance(given, tuple) or (isinstance(given, dict) and "id" not in given):
        # openai-agents refuses an id that an earlier turn has used.
        expected = (ToolCall("call_2", "get_weather", '{"city": "Paris"}'),)
    with wattfare.client().user("ann").model("x").stream("?") as stream:
        chunks = list(stream)
    assert [call for chunk in chunks for call in chunk.tool_calls] == list(expected)
    assert "".join(chunk.text for chunk in chunks) == "Let me see."
    with pytest.raises(TypeError, match="get_weather"):
        wattfare.reply(tool_calls=[given, 5])


def test_openai_client_works(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.tool_call("get_weather", {"city": "Paris"})
    wattfare.reply("It rains.")
    wattfare.fail("rate_limited", retry_after=0)
    with openai.OpenAI(
        api_key=wattfare.secret_key,
        base_url=f"{wattfare.url}/api/v1",
        default_headers={"X-Wattfare-User": "ann"},
    ) as client:
        called = client.chat.completions.create(
            model="openai/gpt-5", messages=[{"role": "user", "content": "Rain?"}]
        )
        tool_calls: Any = called.choices[0].message.tool_calls
        assert tool_calls[0].function.name == "get_weather"
        pieces = client.chat.completions.create(
            model="openai/gpt-5",
            messages=[{"role": "user", "content": [{"type": "text", "text": "Rain?"}]}],
            stream=True,
        )
        text = [piece.choices[0].delta.content or "" for piece in pieces]
        assert "".join(text) == "It rains."
    assert [call.error for call in wattfare.calls] == ["rate_limited", None, None]


# -- failures


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("not_connected", WattfareNotConnectedError, 402),
        ("budget_exceeded", WattfareBudgetExceededError, 402),
        ("funding_invalid", WattfareFundingError, 402),
        ("grant_invalid", WattfareGrantError, 402),
        ("rate_limited", WattfareRateLimitError, 429),
        ("auth", WattfareAuthError, 401),
        ("network", WattfareNetworkError, 0),
        ("invalid_request", WattfareError, 400),
        ("upstream", WattfareError, 502),
        ("unknown", WattfareError, 500),
    ],
)
def test_each_error_can_be_triggered(
    wattfare: WattfareService, code: str, kind: type[WattfareError], status: int
) -> None:
    wattfare.user("ann").connect(5)
    wattfare.fail(code)
    with pytest.raises(WattfareError) as failed:
        ask(wattfare)
    error = failed.value
    assert (type(error), error.code, error.status) == (kind, code, status)
    assert ask(wattfare).text == FOUR_WORDS
    assert wattfare.billed("ann") == PRICE
    assert [call.error for call in wattfare.calls] == [code, None]


def list_models(wf: Wattfare) -> None:
    wf.user("ann").openai(max_retries=0).models.list()


def no_retries(wattfare: WattfareService) -> Wattfare:
    return Wattfare(wattfare.secret_key, base_url=wattfare.url, max_retries=0)


@pytest.mark.parametrize(
    ("on", "request_it"),
    [
        ("token", lambda wf: wf.create_session("ann")),
        ("status", lambda wf: wf.user("ann").status()),
        ("disconnect", lambda wf: wf.user("ann").disconnect()),
        ("models", list_models),
    ],
)
def test_other_requests_can_fail(
    wattfare: WattfareService, on: Any, request_it: Callable[[Wattfare], object]
) -> None:
    wattfare.user("ann").connect(5)
    with no_retries(wattfare) as wf:
        for code, status in (("auth", 401), ("upstream", 502), ("network", 0)):
            wattfare.fail(code, on=on)
            ask(wattfare)  # is not a request of this kind
            with pytest.raises(WattfareError) as failed:
                request_it(wf)
            assert (failed.value.code, failed.value.status) == (code, status)
        wattfare.fail("upstream")  # only calls of a model
        request_it(wf)


def test_only_known_requests_can_fail(wattfare: WattfareService) -> None:
    with pytest.raises(ValueError, match="token, status"):
        wattfare.fail("auth", on="sessions")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`after`"):
        wattfare.fail("auth", on="status", after=3)


def test_error_has_the_text_of_the_real_one(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.fail("budget_exceeded")
    with pytest.raises(WattfareBudgetExceededError) as failed:
        ask(wattfare)
    assert failed.value.limited_by == "cap"
    assert failed.value.remaining_usd == 0
    assert failed.value.resets_at is not None
    assert failed.value.manage_url

    wattfare.fail("rate_limited", "Not so fast.", retry_after=7, times=2)
    for _ in range(2):
        with pytest.raises(WattfareRateLimitError, match="Not so fast") as limited:
            ask(wattfare)
        assert limited.value.retry_after == 7
    wattfare.fail("upstream", status=503)
    with pytest.raises(WattfareError) as down:
        ask(wattfare)
    assert down.value.status == 503
    ask(wattfare)
    with pytest.raises(ValueError, match="budget_exceeded"):
        wattfare.fail("budget")


@pytest.mark.parametrize(
    ("verb", "given", "options"),
    [
        ("reply", None, {}),
        ("reply", b"bytes", {}),
        ("reply", "x", {"pause": -1}),
        ("reply", "x", {"prompt_tokens": -1}),
        ("reply", "x", {"completion_tokens": -1}),
        ("reply", "x", {"times": 0}),
        ("fail", "auth", {"times": 0}),
        ("fail", "auth", {"after": -1}),
        ("fail", "auth", {"status": 200}),
        ("fail", "rate_limited", {"retry_after": -1}),
        ("cut_stream", -1, {}),
    ],
)
def test_invalid_script_is_refused_at_once(
    wattfare: WattfareService, verb: str, given: Any, options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError), match=r"`\w+` must be|A reply must be"):
        getattr(wattfare, verb)(given, **options)
    wattfare.user("ann").connect(5)
    assert ask(wattfare).text  # it has changed nothing


@pytest.mark.parametrize("network", [False, True])
def test_stream_can_be_cut(wattfare: WattfareService, network: bool) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("one two three four five")
    wattfare.cut_stream(after=3, network=network)
    assert ask(wattfare).text  # only a stream can be cut
    came: list[str] = []
    with pytest.raises(WattfareError) as cut:
        _read_into(came, wattfare)
    assert came == ["one ", "two ", "three "]
    assert cut.value.code == "upstream"
    assert wattfare.calls[-1].cost == Decimal("0.00001")
    assert wattfare.calls[-1].error == ("network" if network else "upstream")
    assert list(read_stream(wattfare))[-1] == "five"


def _read_into(came: list[str], wattfare: WattfareService) -> None:
    for text in read_stream(wattfare):
        came.append(text)  # noqa: PERF402 - one after the other


def test_budget_ends_within_a_stream(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.fail("budget_exceeded", after=2)
    came: list[str] = []
    with pytest.raises(WattfareError) as ended:
        _read_into(came, wattfare)
    assert is_budget_exceeded(ended.value)
    assert came == ["Say ", "hello "]
    assert wattfare.billed("ann") == Decimal("0.000008")
    wattfare.cut_stream(after=100)  # later than its end
    with pytest.raises(WattfareError):
        list(read_stream(wattfare))
    with pytest.raises(ValueError, match="after"):
        wattfare.cut_stream(after=-1)


# -- the clock


def test_new_month_resets_the_budget(wattfare: WattfareService) -> None:
    ann = wattfare.user("ann").connect("0.01").spend_to("0.01")
    with pytest.raises(WattfareBudgetExceededError):
        ask(wattfare)
    before = wattfare.clock.now()
    assert wattfare.clock.advance(days=31) - before >= timedelta(days=31)
    status = ann.status()
    assert (status.usage.monthly_usd, status.remaining_usd) == (0, Decimal("0.01"))
    ask(wattfare)
    assert ann.status().usage.monthly_usd == PRICE
    assert ann.billed == Decimal("0.01") + PRICE
    with pytest.raises(ValueError, match="forward"):
        wattfare.clock.advance(days=-1)
    with pytest.raises(TypeError, match=r"such as advance\(days=31\)"):
        wattfare.clock.advance(31)  # type: ignore[arg-type]


def test_tokens_and_grants_expire_by_the_clock(wattfare: WattfareService) -> None:
    wf = wattfare.client()
    token = wf.create_session("ann").token
    of_browser = {"authorization": f"Bearer {token}"}
    of_app = {"authorization": f"Bearer {wattfare.secret_key}"}
    grant = wf.grant(wattfare.grant(requests=9)).model("x")
    grant.generate("x")
    with http_client(base_url=f"{wattfare.url}/api/v1") as http:
        for _ in range(31):
            limited = http.post("/sessions", json={"appUserId": "ann"}, headers=of_app)
        assert limited.status_code == 429
        assert 1 <= int(limited.headers["retry-after"]) <= 60

        wattfare.clock.advance(minutes=9)
        wf.create_session("ann")
        assert http.get("/connections", headers=of_browser).status_code == 200
        wattfare.clock.advance(minutes=1)
        refused = http.get("/connections", headers=of_browser)
        assert (refused.status_code, "expired" in refused.text) == (401, True)

    wattfare.clock.advance(timedelta(days=1))
    with pytest.raises(WattfareGrantError, match="expired"):
        grant.generate("x")


def test_call_in_flight_survives_a_clock_change(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("one two", pause=0.2)
    stream = read_stream(wattfare)
    assert next(stream) == "one "
    wattfare.clock.advance(days=400)
    assert list(stream) == ["two"]
    assert wattfare.billed("ann") == Decimal("0.000008")


# -- recorded calls


def test_call_is_recorded(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    answer = fetch(
        f"{wattfare.url}/api/v1/chat/completions",
        "POST",
        json={
            "model": "openai/gpt-5",
            "messages": [{"role": "user", "content": FOUR_WORDS}],
            "max_tokens": 50,
            "temperature": 0.5,
        },
        headers={
            "authorization": f"Bearer {wattfare.secret_key}",
            "x-wattfare-user": "ann",
            "idempotency-key": "k1",
        },
    )
    assert answer.status_code == 200
    (call,) = wattfare.calls
    assert (call.user, call.model, call.stream) == ("ann", "openai/gpt-5", False)
    assert call.messages == [{"role": "user", "content": FOUR_WORDS}]
    assert call.params == {"max_tokens": 50, "temperature": 0.5}
    assert (call.status, call.error, call.text) == (200, None, FOUR_WORDS)
    assert (call.prompt_tokens, call.completion_tokens) == (4, 4)
    assert (call.cost, call.reserved) == (PRICE, 0)
    assert call.headers["x-wattfare-user"] == "ann"
    assert call.headers["idempotency-key"] == "k1"
    assert "authorization" not in call.headers
    assert call.request_id
    assert "0.000012 USD" in repr(call)


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"model": 5, "messages": "x"}'])
def test_unreadable_call_is_recorded_too(wattfare: WattfareService, body: bytes) -> None:
    answer = fetch(
        f"{wattfare.url}/api/v1/chat/completions",
        "POST",
        content=body,
        headers={
            "authorization": f"Bearer {wattfare.secret_key}",
            "content-type": "application/json",
        },
    )
    assert answer.status_code == 400
    assert (wattfare.calls[0].user, wattfare.calls[0].error) == (None, "invalid_request")


def test_disconnected_client_is_billed_what_was_sent(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("one two three", pause=0.15)
    stream = read_stream(wattfare)
    assert next(stream) == "one "
    assert wattfare.reserved("ann") == Decimal("0.00001") == wattfare.user("ann").reserved
    stream.close()  # type: ignore[attr-defined]
    assert wattfare.billed("ann") == Decimal("0.000006")
    assert wattfare.reserved() == 0


def test_many_threads(wattfare: WattfareService) -> None:
    client = wattfare.client()

    def work(user: str) -> None:
        wattfare.user(user).connect(5)
        client.user(user).model("x").generate(FOUR_WORDS)

    threads = [threading.Thread(target=work, args=(f"u{n % 3}",)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wattfare.billed() == 9 * PRICE
    assert wattfare.billed("u0") == 3 * PRICE
    assert len(wattfare.calls) == 9


async def test_async_app(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    async with wattfare.async_client() as wf:
        model = wf.user("ann").model("x")
        await asyncio.gather(*(model.generate(FOUR_WORDS) for _ in range(3)))
        async with model.stream(FOUR_WORDS) as stream:
            assert [text async for text in stream.text_stream] == ["Say ", "hello ", "to ", "Ann"]
    assert wattfare.billed("ann") == 4 * PRICE


def test_each_test_may_have_its_own_event_loop(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)

    async def call() -> None:
        async with AsyncWattfare() as wf:
            await wf.user("ann").model("x").generate(FOUR_WORDS)

    for _ in range(2):
        asyncio.run(call())
    assert wattfare.billed("ann") == 2 * PRICE


# -- what must not hang


_open: list[Any] = []


def _leave_open(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    wattfare.reply("one two three", pause=30)
    _open.append(wattfare.client().user("ann").model("slow").stream("x"))


def test_close_names_the_calls_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattfare_mw.testing.service.END_SECONDS", 0.05)
    wattfare = WattfareService().open()
    _leave_open(wattfare)
    with pytest.raises(AssertionError, match=r"ann reserves 0\.000007 USD for a stream of slow"):
        wattfare.close()
    with WattfareService() as after:
        assert after.reserved() == 0

    with WattfareService(allow_reserved=True) as allowed:
        _leave_open(allowed)
    with pytest.raises(ZeroDivisionError):
        _fail_with_an_open_stream()


def _fail_with_an_open_stream() -> None:
    with WattfareService() as wattfare:
        _leave_open(wattfare)
        raise ZeroDivisionError


def test_service_recovers_after_losing_its_lease(wattfare: WattfareService) -> None:
    """As after a debugger has stopped its thread."""
    wattfare.user("ann").connect(5)

    async def lose(state: Any) -> None:
        state.runner._lose_lease()

    wattfare._server.run(lose)
    ask(wattfare)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_can_call_but_not_inspect(wattfare: WattfareService) -> None:
    wattfare.user("ann").connect(5)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "nothing"
        try:
            wattfare.billed()
        except RuntimeError as error:
            outcome = str(error)
        os.write(writable, outcome.encode())
        servers.stop_servers()
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        assert "forked" in pipe.read()
    os.waitpid(child, 0)
    ask(wattfare)


def test_failed_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no more sockets")

    monkeypatch.setattr(servers, "create_app", fail)
    with pytest.raises(RuntimeError, match="did not start") as failed:
        servers.Server(Address())
    assert isinstance(failed.value.__cause__, OSError)


def test_frozen_time_stops_no_service(
    wattfare: WattfareService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries freeze the time."""
    now, steady = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: steady)
    wattfare.user("ann").connect(5)
    wattfare.reply("one two", pause=0.01)
    assert list(read_stream(wattfare)) == ["one ", "two"]
