"""How the meter counts chunks and reported usage."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw import WattfareError
from wattfare_mw.service.chat import prompt_bound
from wattfare_mw.service.chat.meter import Meter, estimate_tokens
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.models import upstream_answers, upstream_json
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.own_tools import with_fee
from wattfare_mw.service.models.price_lists import read_prices
from wattfare_mw.service.models.upstream_answers import read_chunk, read_completion
from wattfare_mw.types import encode

PRICE = Price.flat(Decimal("0.000001"), Decimal("0.000002"))

NO_KEY = Credential(None)


def meter(price: Price | None = PRICE, granted: int | None = 10**9) -> Meter:
    made = Meter(price, prompt_tokens=10)
    made.granted = granted
    return made


#: Amounts in a list of models or in a report, some of which cannot be true.
ODD = st.sampled_from(
    [
        "0",
        "-1",
        "1e-30",
        "0.000001",
        "0.0099",
        "0.5",
        "1000001",
        "NaN",
        "",
        None,
        True,
        3,
        1e300,
        [],
    ]
)
COUNTS = st.sampled_from([0, 1, 5, 1000, 10**9, 10**9 + 1, -1, 1.5, "7", "x", None, 1e300])


@given(
    st.fixed_dictionaries(
        {"prompt": ODD, "completion": ODD},
        optional={
            "request": ODD,
            "web_search": ODD,
            "internal_reasoning": ODD,
            "input_cache_read": ODD,
            "input_cache_write": ODD,
            "overrides": st.lists(st.fixed_dictionaries({"prompt": ODD}), max_size=2),
        },
    ),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "prompt_tokens": COUNTS,
                "completion_tokens": COUNTS,
                "total_tokens": COUNTS,
                "cache_read_input_tokens": COUNTS,
                "cache_write_tokens": COUNTS,
                "reasoning_tokens": COUNTS,
                "cost": ODD,
                "is_byok": st.booleans(),
            },
        ),
        max_size=3,
    ),
    st.booleans(),
)
def test_bill_is_within_the_reservation_for_any_list_and_report(
    pricing: dict, reports: list, bounded: bool
) -> None:
    body = msgspec.json.encode({"data": [{"id": "m", "pricing": pricing}]})
    listed = read_prices(body)["m"]
    if not isinstance(listed, Price):
        return
    # Sonar searches once for each call.
    price = with_fee("sonar", listed)
    measured = Meter(price, 10)
    measured.bounded, measured.granted = bounded, price.bound(10, 20)
    for report in reports:
        measured.count(3)
        measured.add_usage(upstream_json.decode(msgspec.json.encode(report)))
        assert 0 <= measured.billed <= price.bound(10, 20)
        answer = upstream_answers.with_cost(encode({"usage": report}), measured)
        cost = upstream_json.decode(answer)["usage"]["cost"]
        assert Decimal(cost).scaleb(9) == measured.billed


def chunk(**delta) -> bytes:
    return encode({"choices": [{"index": 0, "delta": delta}]})


def test_empty_answer_costs_nothing() -> None:
    idle = meter()
    read_chunk(chunk(role="assistant", content=""), idle, NO_KEY)
    assert (idle.cost(), idle.outcome("failed").prompt_tokens) == (0, 0)
    assert meter(price=None).cost() == 0


def test_tokens_are_the_chunks_or_a_quarter_of_the_bytes() -> None:
    short = meter()
    for _ in range(5):
        read_chunk(chunk(content="a"), short, NO_KEY)
    assert short.completion_tokens == 5
    long = meter()
    read_chunk(chunk(content="é" * 10), long, NO_KEY)
    assert long.completion_tokens == 5
    assert long.cost() == 10 * 1000 + 5 * 2000


def test_generated_text_is_counted_once_in_any_field() -> None:
    call = {"index": 0, "id": "x" * 99, "function": {"name": "four", "arguments": '{"a":1}..'}}
    for delta, size in (
        ({"content": "12345678"}, 8),
        ({"content": [{"type": "text", "text": "12345678"}]}, 8),
        ({"refusal": "12345678"}, 8),
        ({"reasoning": "12345678", "reasoning_details": [{"text": "12345678"}]}, 8),
        ({"reasoning": "12345678", "reasoning_content": "12345678"}, 8),
        ({"tool_calls": [call, call]}, 26),
        ({"function_call": {"name": "1234", "arguments": "5678"}}, 8),
        ({"tool_calls": [{"function": {"name": "1234", "arguments": {"a": [1, 2, 3]}}}]}, 17),
        ({"reasoning_details": [{"data": "x" * 400}]}, 1),
        ({"content": "\ud800" * 4}, 12),
    ):
        counted = meter()
        counted.count(0)
        assert upstream_answers._count({"role": "assistant", **delta}, counted)
        assert counted.completion_tokens == max(1, -(-size // 4)), delta


def test_whole_answer_and_its_stream_cost_the_same() -> None:
    whole, streamed = meter(), meter()
    message = {"role": "assistant", "content": "one two three four"}
    read_completion(encode({"choices": [{"message": message}]}), whole, NO_KEY)
    for word in ("one ", "two ", "three ", "four"):
        read_chunk(chunk(content=word), streamed, NO_KEY)
    assert whole.cost() == streamed.cost() == 10 * 1000 + 5 * 2000


def test_last_usage_counts_and_later_chunks_are_added() -> None:
    measured = meter()
    measured.count(3)
    measured.add_usage({"prompt_tokens": 4, "completion_tokens": 100})
    assert measured.cost() == 4 * 1000 + 100 * 2000
    measured.count(2)
    assert measured.cost() == 4 * 1000 + 102 * 2000
    measured.add_usage({"prompt_tokens": 4, "completion_tokens": 5, "cost": Decimal("0.5")})
    assert measured.cost() == measured.claimed == 500_000_000
    measured.count(1)
    assert measured.cost() == 500_000_000 + 2000
    measured.add_usage({"cost": Decimal("0.25")})
    assert measured.cost() == 250_000_000
    measured.add_usage({"cost": "0.1"})
    assert measured.cost() == 100_000_000


def test_claimed_cost_comes_from_the_upstream() -> None:
    measured = meter()
    measured.count(50)
    assert measured.claimed is None
    measured.add_usage({"prompt_tokens": 7, "completion_tokens": 8})
    measured.count(50)
    assert measured.claimed == 7 * 1000 + 8 * 2000
    measured.add_usage({"cost": 1})
    assert measured.outcome("completed").claimed == 10**9


def test_without_a_price_only_the_upstream_reports_the_cost() -> None:
    unpriced = meter(price=None, granted=777)
    unpriced.count(5)
    assert unpriced.cost() == 777
    unpriced.add_usage({"prompt_tokens": 7, "completion_tokens": 8})
    assert (unpriced.cost(), unpriced.claimed) == (777, None)
    unpriced.add_usage({"cost": Decimal("0.0000001")})
    assert unpriced.cost() == 100
    unpriced.count(1)
    assert unpriced.cost() == 777
    assert not unpriced.spent


@given(
    st.lists(st.text(max_size=60), max_size=30),
    st.integers(1, 60),
    st.integers(1, 4),
    st.text(max_size=200),
    # If the prompt is free, its bound leaves no margin for an error.
    st.sampled_from([PRICE, Price.flat(Decimal(0), Decimal("0.000002"))]),
)
def test_upstream_within_its_limit_is_never_cut_off(
    pieces: list[str], limit: int, answers: int, prompt: str, price: Price
) -> None:
    """A chunk has at least one token, and a token has eight characters at most on average."""
    messages = [{"role": "user", "content": prompt}]
    granted = price.bound(prompt_bound.bound({"messages": messages}), answers * limit)
    counted = Meter(price, estimate_tokens(encode(messages)))
    counted.granted = granted
    tokens = 0
    for piece in pieces:
        tokens += max(1, -(-len(piece) // 8))
        if tokens > answers * limit:
            break
        counted.count(1, piece)
        assert not counted.spent


@given(st.integers(0, 100), st.integers(1, 300))
def test_upstream_above_its_limit_is_cut_off(limit: int, chunks: int) -> None:
    counted = meter(granted=PRICE.bound(10, limit))
    for passed in range(1, chunks + 1):
        counted.count(1, "w ")
        assert counted.spent == (passed > limit)
        if counted.spent:
            assert counted.cost() > counted.granted


def test_disconnected_client_pays_for_a_prompt_that_was_sent() -> None:
    counted = meter(granted=PRICE.bound(10, 5))
    counted.client_left()
    assert counted.outcome("client_gone").cost == 0
    assert not counted.outcome("client_gone").generated
    counted.sent = True
    assert counted.outcome("failed").cost == 0  # the upstream failed, and the client stayed
    counted.client_left()
    gone = counted.outcome("client_gone")
    assert (gone.cost, gone.prompt_tokens, gone.completion_tokens) == (PRICE.bound(10, 0), 10, 0)
    assert gone.generated  # so that a grant's request is used up, and an idempotency key is


TEXTS = st.none() | st.text(max_size=8)
DELTAS = st.one_of(
    st.none(),
    st.integers(),
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["assistant", None, 5]),
            "content": TEXTS | st.integers() | st.lists(st.fixed_dictionaries({"text": TEXTS})),
            "reasoning": TEXTS,
            "refusal": TEXTS,
            "tool_calls": st.lists(
                st.fixed_dictionaries({"function": st.fixed_dictionaries({"arguments": TEXTS})}),
                max_size=2,
            ),
            "unheard_of": st.none() | st.booleans() | st.text(max_size=3),
        },
    ),
)
CHOICES = st.fixed_dictionaries({}, optional={"index": st.integers(), "delta": DELTAS})
CHUNKS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=3),
        "choices": st.none() | st.lists(CHOICES | st.none(), max_size=3),
        "usage": st.none()
        | st.fixed_dictionaries({"prompt_tokens": st.just(3), "completion_tokens": st.just(4)}),
        "error": st.none() | st.just({"message": "no", "code": 502}),
    },
)


@given(CHUNKS)
def test_shortcut_for_a_plain_chunk_counts_like_the_full_path(fields: dict) -> None:
    def counted() -> tuple:
        made = meter()
        try:
            read = upstream_answers.read_chunk(encode(fields), made, NO_KEY)
        except WattfareError as error:
            return (error.code,)
        # Only the shortcut knows that a chunk does not end the stream.
        return (msgspec.structs.replace(read, may_end=True), made.outcome("completed"))

    def not_plain(_: bytes) -> None:
        raise msgspec.ValidationError

    as_it_is = counted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream_answers, "_decode_plain", not_plain)
        assert counted() == as_it_is


def test_tokens_after_their_cost_are_not_billed_again() -> None:
    """NanoGPT reports the cost with the finish reason, and then the tokens."""
    meter = Meter(PRICE, 10)
    meter.count(1, "one ")
    meter.add_usage({"cost": Decimal("0.0005")})
    meter.add_usage({"prompt_tokens": 100, "completion_tokens": 10})
    assert meter.cost() == 500_000
    meter.count(1, "two ")
    more = meter.cost() - 500_000
    assert more > 0
    meter.add_usage({"prompt_tokens": 100, "completion_tokens": 13})
    assert meter.cost() == 500_000 + 3 * more
