"""The exact bill for each kind of upstream: one that is correct, reports false usage, ignores its
limit, or stops sending.

The call is always the same. Its prompt has 11 tokens by its length, and PROMPT tokens at most. Its
answer has 4 tokens at most. A prompt token costs 1,000 nano-dollars, and a completion token costs
2,000.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from support.service import App, Service, chat_body, eventually
from support.upstream import Exchange, Script, Upstream, chunk_of, completion_of, good

from wattfare_mw.service.chat import prompt_bound

LIMIT = 4
CALL = {"model": "fake/model", "max_tokens": LIMIT}
PROMPT = prompt_bound.bound(chat_body(**CALL))
ESTIMATED = 11
RESERVED = PROMPT * 1000 + LIMIT * 2000

USAGE = {"prompt_tokens": 5, "completion_tokens": 3}


def metered(tokens: int) -> int:
    return ESTIMATED * 1000 + tokens * 2000


@pytest.fixture
def app(forwarding: Service, upstream: Upstream):
    upstream.script = good
    upstream.calls.clear()
    app = forwarding.app()
    app.connect(monthlyUsd=1)
    yield app
    app.close()
    assert not upstream.failures


def billed(app: App) -> int:
    return int(Decimal(str(app.status()["usage"]["monthlyUsd"])) * 10**9)


def whole(usage: object, text: str = "one two") -> Script:
    return lambda exchange: exchange.answer(completion_of(text, usage=usage))


def streamed(*steps: Callable[[Exchange], None]) -> Script:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for step in steps:
            step(exchange)

    return script


def word(text: str = "one ") -> Callable[[Exchange], None]:
    return lambda exchange: exchange.word(text)


def usage(value: object) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.usage(value)


def word_with_usage(value: object) -> Callable[[Exchange], None]:
    delta = {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": value}
    return lambda exchange: exchange.event(chunk_of(delta))


done = Exchange.done
reset = Exchange.reset


def end(exchange: Exchange) -> None:
    exchange.send(b"0\r\n\r\n")


def raw(data: bytes) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.chunk(data)


#: What the upstream reports as usage, and the cost of a whole answer then.
WHOLE = {
    "cost": ({**USAGE, "cost": 0.000123}, 123_000),
    "cost below a nano-dollar": ({"cost": 1e-10}, 1),
    "zero cost": ({**USAGE, "cost": 0}, 0),
    "tokens": (USAGE, 5 * 1000 + 3 * 2000),
    "nothing": (None, metered(2)),
    "cost too high": ({**USAGE, "cost": 0.0005}, RESERVED),
    "cost in another unit": ({**USAGE, "cost": 0.5}, 11_000),
    "tokens too many": ({"prompt_tokens": 10**6, "completion_tokens": 1}, RESERVED),
    "cost negative": ({**USAGE, "cost": -1}, 11_000),
    "cost NaN": ({**USAGE, "cost": float("nan")}, 11_000),
    "cost infinite": ({**USAGE, "cost": float("inf")}, 11_000),
    "cost as text": ({**USAGE, "cost": "0.000123"}, 123_000),
    "cost not a number": ({**USAGE, "cost": "cheap"}, 11_000),
    "cost true": ({**USAGE, "cost": True}, 11_000),
    "cost absurd": ({**USAGE, "cost": 1e300}, 11_000),
    "tokens negative": ({"prompt_tokens": -5, "completion_tokens": 3}, metered(3)),
    "tokens as text": ({"prompt_tokens": "5", "completion_tokens": 3}, 11_000),
    "prompt tokens only": ({"prompt_tokens": 5}, 5 * 1000 + 2 * 2000),
    "tokens absurd": ({"prompt_tokens": 10**30, "completion_tokens": 3}, metered(3)),
    "all zero": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, metered(2)),
    "usage a string": ("cost: 1", metered(2)),
}


@pytest.mark.parametrize(("reported", "cost"), WHOLE.values(), ids=WHOLE)
def test_bill_of_a_whole_answer(app: App, upstream: Upstream, reported: object, cost: int) -> None:
    upstream.script = whole(reported)
    assert app.chat(**CALL).status_code == 200
    assert billed(app) == cost


#: What the upstream streams, how the client's stream ends, and the cost.
STREAMS = {
    "usage": ((word(), usage({**USAGE, "cost": 0.000123}), done), "[DONE]", 123_000),
    "no usage": ((word(), word(), done), "[DONE]", metered(2)),
    "usage too high": ((word(), usage({"cost": 0.5}), done), "[DONE]", RESERVED),
    "tokens too many": (
        (word(), usage({"prompt_tokens": 10**6, "completion_tokens": 1}), done),
        "[DONE]",
        RESERVED,
    ),
    "usage negative": ((word(), usage({"cost": -1}), done), "[DONE]", metered(1)),
    "usage NaN": ((word(), usage({"cost": float("nan")}), done), "[DONE]", metered(1)),
    "usage a string": ((word(), usage("0.5"), done), "[DONE]", metered(1)),
    "usage twice": (
        (word(), usage({"cost": 0.0003}), usage({"cost": 0.0002}), done),
        "[DONE]",
        200_000,
    ),
    "usage, then more text": ((word(), usage(USAGE), word(), done), "[DONE]", 11_000 + 2000),
    "cost, then more text": ((usage({"cost": 0.0001}), word(), done), "[DONE]", 102_000),
    "usage with every chunk": (
        (*(word_with_usage({"prompt_tokens": 5, "completion_tokens": n}) for n in (1, 2)), done),
        "[DONE]",
        5 * 1000 + 2 * 2000,
    ),
    "no [DONE]": ((word(), end), "upstream", metered(1)),
    "no [DONE] after its usage": ((word(), usage(USAGE), end), "upstream", 11_000),
    "reset": ((word(), word(), reset), "upstream", metered(2)),
    "reset before anything": ((reset,), "upstream", 0),
    "an error": ((word(), raw(b'data: {"error": {"code": 500}}\n\n')), "upstream", metered(1)),
    "an error before anything": ((raw(b'data: {"error": {"code": 429}}\n\n'),), "rate_limited", 0),
    # llama.cpp has sent errors in a field of their own: ggml-org/llama.cpp#16109.
    "an error in its own field": (
        (word(), raw(b': ping\n\nerror: {"code": 500, "message": "no"}\n\n'), done),
        "upstream",
        metered(1),
    ),
    "an error as JSON alone": (
        (word(), raw(b'{"error": {"code": 500}}\n\n'), end),
        "upstream",
        metered(1),
    ),
    "an error by its type": (
        (word(), raw(b"event: error\ndata: timeout\n\n"), done),
        "upstream",
        metered(1),
    ),
    "a ping with a time": (
        (raw(b"event: ping\ndata: 2026-01-01 12:00\n\n"), word(), done),
        "[DONE]",
        metered(1),
    ),
    "HTML": ((word(), raw(b"data: <html>\n\n")), "upstream", metered(1)),
    "half an event": ((word(), raw(b'data: {"choi'), end), "upstream", metered(1)),
    "trailing garbage": (
        (word(), raw(b"data: [DONE]\n\ndata: <html>\n\nxx"), end),
        "[DONE]",
        metered(1),
    ),
    "usage after [DONE]": (
        (word(), raw(b'data: [DONE]\n\ndata: {"choices": [], "usage": {"cost": 1}}\n\n'), end),
        "[DONE]",
        metered(1),
    ),
    "a silent model": (
        (word(""), usage({"prompt_tokens": 5, "completion_tokens": 0}), done),
        "[DONE]",
        5000,
    ),
    "no choice": ((usage({"prompt_tokens": 5, "completion_tokens": 0}), done), "upstream", 0),
    "no choice, and a cost": ((usage({"cost": 0.0001}), done), "upstream", 100_000),
}


def last_of(text: str) -> str:
    assert text.endswith("\n\n")
    last = text[:-2].split("\n\n")[-1].removeprefix("data: ")
    return last if last == "[DONE]" else json.loads(last)["error"]["code"]


@pytest.mark.parametrize(("steps", "last", "cost"), STREAMS.values(), ids=STREAMS)
def test_bill_of_a_stream(
    app: App,
    upstream: Upstream,
    steps: tuple[Callable[[Exchange], None], ...],
    last: str,
    cost: int,
) -> None:
    upstream.script = streamed(*steps)
    answer = app.chat(**CALL, stream=True)
    assert answer.status_code == 200
    assert last_of(answer.text) == last
    assert billed(app) == cost


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reported", [True, False], ids=["with usage", "without usage"])
def test_upstream_that_ignores_its_limit_is_cut_off(
    app: App, upstream: Upstream, stream: bool, reported: bool
) -> None:
    """It is cut off at the chunk that the reservation does not cover. That chunk is not
    forwarded."""
    left = (RESERVED - ESTIMATED * 1000) // 2000
    if not stream:
        upstream.script = whole(
            {"prompt_tokens": 5, "completion_tokens": 10**4} if reported else None, "word " * 5000
        )
        assert app.chat(**CALL).status_code == 200
        assert billed(app) == RESERVED
        return

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        sent = 0
        while True:
            sent += 1
            # Its usage reports 10 tokens a chunk.
            said = {"prompt_tokens": ESTIMATED, "completion_tokens": 10 * sent}
            (word_with_usage(said) if reported else word("w "))(exchange)

    upstream.script = script
    answer = app.chat(**CALL, stream=True)
    upstream.wait_gone()
    assert last_of(answer.text) == "budget_exceeded"
    assert answer.text.count('"delta"') == (left // 10 if reported else left)
    assert billed(app) == RESERVED


def test_upstream_that_exceeds_its_limit_in_one_event(app: App, upstream: Upstream) -> None:
    upstream.script = streamed(word("one "), word("characters " * 1000), done)
    answer = app.chat(**CALL, stream=True)
    assert last_of(answer.text) == "budget_exceeded"
    assert "one " in answer.text
    assert "characters" not in answer.text
    assert billed(app) == RESERVED


def test_long_words_within_the_limit_pass(app: App, upstream: Upstream) -> None:
    upstream.script = streamed(*[word("extraordinarily ")] * LIMIT, done)
    assert last_of(app.chat(**CALL, stream=True).text) == "[DONE]"
    assert billed(app) == metered(16)


@pytest.mark.parametrize("stream", [False, True])
def test_compressed_answer_is_billed(app: App, upstream: Upstream, stream: bool) -> None:
    body = gzip.compress(json.dumps(completion_of("one")).encode())
    kind = "text/event-stream" if stream else "application/json"
    headers = {"content-encoding": "gzip"}
    upstream.script = lambda exchange: exchange.answer(body, content_type=kind, headers=headers)
    answer = app.chat(**CALL, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream")
    assert upstream.calls[0].headers["accept-encoding"] == "identity"
    assert billed(app) == 0


@pytest.mark.parametrize(
    "body", ["<html>", "", "null", "[]", '{"choices": 5}', '{"choices": []} x']
)
def test_invalid_whole_answer_is_a_failure(app: App, upstream: Upstream, body: str) -> None:
    upstream.script = lambda exchange: exchange.answer(body)
    answer = app.chat(**CALL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream")
    assert billed(app) == 0


@pytest.mark.parametrize("said", [0, 2])
def test_stalled_upstream_is_paid_what_it_sent(app: App, upstream: Upstream, said: int) -> None:
    """It stalls until the client disconnects."""
    upstream.script = streamed(*[word()] * said, Exchange.hang)
    body = chat_body(**CALL, stream=True)
    with app.http.stream("POST", "/chat/completions", json=body, headers=app.paid_by("u1")) as it:
        lines = it.iter_lines()
        for _ in range(said):
            while "one " not in next(lines):
                pass
    upstream.wait_gone()
    assert eventually(lambda: billed(app)) == metered(said)
    # A second call can reserve the whole cap only once the first is settled.
    app.connect(monthlyUsd=(billed(app) + RESERVED) / 10**9)
    upstream.script = good
    eventually(lambda: app.chat(**CALL).status_code == 200)
    assert billed(app) == metered(said) + 11_000
