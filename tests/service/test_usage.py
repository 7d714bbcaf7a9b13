"""The service reads each provider's usage under all of its names, with the provider's meaning."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prices import NOON, in_openai_names, prices, provider_cost, token_counts

from wattfare_mw.service.chat import usage
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.chat.price import Price, Rates
from wattfare_mw.service.chat.usage import TokenCounts

PRICE = Price(
    Rates(
        prompt=Decimal("0.000001"),
        completion=Decimal("0.000002"),
        cache_read=Decimal("0.0000001"),
    )
)


def billed(reported: dict[str, Any], *, chunks: int = 0, price: Price | None = PRICE) -> int:
    meter = Meter(price, prompt_tokens=10, began=NOON)
    meter.granted = 10**15
    for _ in range(chunks):
        meter.count(1, "w ")
    meter.add_usage(reported)
    return meter.billed


@given(token_counts())
def test_counts_survive_encoding(counts: TokenCounts) -> None:
    report = usage.read(in_openai_names(counts))
    # No prompt has 0 tokens, so only an answer without a prompt is left.
    assert report.counts == counts
    assert report.prompt == bool(counts.prompt)


@given(prices, token_counts())
def test_bill_follows_the_providers_arithmetic(price: Price, counts: TokenCounts) -> None:
    if not counts.prompt:
        return
    exact = provider_cost(price, counts)
    assert exact <= billed(in_openai_names(counts), price=price) < exact + 1


CALLS = {
    "counts as text, and a cost with its currency": (
        {"prompt_tokens": "2000.0", "completion_tokens": " 10 ", "cost": "0.00123 USD"},
        1_230_000,
    ),
    "counts as text with a decimal point": (
        {"prompt_tokens": "2000.0", "completion_tokens": "10.0"},
        2_020_000,
    ),
    "only the total": ({"total_tokens": 329}, 10 * 1000 + 319 * 2000),
    "cached tokens under LangChain's names": (
        {
            "input_tokens": 2000,
            "output_tokens": 10,
            "input_token_details": {"cache_read": 1900, "audio": 0},
        },
        310_000,
    ),
    "cached tokens as `cached_prompt_tokens`": (
        {"prompt_tokens": 2000, "completion_tokens": 10, "cached_prompt_tokens": 1900},
        310_000,
    ),
    "a list of modalities that cannot be read": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "promptTokensDetails": [None, "AUDIO", {"modality": ["AUDIO"], "tokenCount": 5}],
        },
        120_000,
    ),
    "OpenRouter, own key at the provider": (
        {
            "prompt_tokens": 9000,
            "completion_tokens": 100,
            "cost": 0,
            "is_byok": True,
            "cost_details": {"upstream_inference_cost": Decimal("0.0092")},
        },
        9_200_000,
    ),
    "OpenRouter, its own key": (
        {
            "prompt_tokens": 9000,
            "completion_tokens": 100,
            "cost": Decimal("0.0092"),
            "is_byok": False,
            "cost_details": {"upstream_inference_cost": Decimal("0.0092")},
        },
        9_200_000,
    ),
    "own key, cost of the provider not known": (
        {"prompt_tokens": 100, "completion_tokens": 10, "cost": Decimal("0.5"), "is_byok": True},
        120_000,
    ),
    "xAI, reasoning beside the completion": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "total_tokens": 329,
            "completion_tokens_details": {"reasoning_tokens": 317},
        },
        648_000,
    ),
    "the same without a total": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "completion_tokens_details": {"reasoning_tokens": 317},
        },
        648_000,
    ),
    "Gemini, thoughts in the total only": (
        {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 329},
        648_000,
    ),
    "a total below the sum": (
        {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 5},
        14_000,
    ),
    "OpenAI, cached": (
        {
            "prompt_tokens": 2000,
            "completion_tokens": 10,
            "total_tokens": 2010,
            "prompt_tokens_details": {"cached_tokens": 1900},
        },
        310_000,
    ),
    "DeepSeek, cached": (
        {
            "prompt_tokens": 2000,
            "completion_tokens": 10,
            "prompt_cache_hit_tokens": 1900,
            "prompt_cache_miss_tokens": 100,
        },
        310_000,
    ),
    "Moonshot, cached": (
        {"prompt_tokens": 2000, "completion_tokens": 10, "cached_tokens": 1900},
        310_000,
    ),
    "Anthropic's own names, cached": (
        {"input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 1900},
        310_000,
    ),
    "Anthropic's names, added by a gateway": (
        {"prompt_tokens": 2000, "completion_tokens": 10, "cache_read_input_tokens": 1900},
        310_000,
    ),
    "Anthropic's names, not added by a gateway": (
        {"prompt_tokens": 100, "completion_tokens": 10, "cache_read_input_tokens": 1900},
        310_000,
    ),
    "the same, told by the total": (
        {
            "prompt_tokens": 3000,
            "completion_tokens": 10,
            "total_tokens": 4910,
            "cache_read_input_tokens": 1900,
        },
        3000 * 1000 + 190_000 + 20_000,
    ),
    "more cached than there is": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 1900},
        },
        120_000,
    ),
    "more cached than there is, and a total that has it": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 2010,
            "prompt_tokens_details": {"cached_tokens": 1900},
        },
        310_000,
    ),
    "Responses": (
        {
            "input_tokens": 2000,
            "output_tokens": 10,
            "total_tokens": 2010,
            "input_tokens_details": {"cached_tokens": 1900},
            "output_tokens_details": {"reasoning_tokens": 4},
        },
        310_000,
    ),
    "Google's own names": (
        {
            "promptTokenCount": 2000,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 6,
            "totalTokenCount": 2010,
            "cachedContentTokenCount": 1900,
        },
        310_000,
    ),
    "Bedrock's own names": (
        {"inputTokens": 100, "outputTokens": 10, "cacheReadInputTokens": 1900},
        310_000,
    ),
    "Bedrock's own names, of other versions": (
        {"inputTokens": 100, "outputTokens": 10, "cacheReadInputTokensCount": 1900},
        310_000,
    ),
    "Ollama's own names": ({"prompt_eval_count": 10, "eval_count": 2}, 14_000),
    "numbers as text": ({"prompt_tokens": "10", "completion_tokens": "2"}, 14_000),
    "a cost as text": ({"cost": "$0.0092"}, 9_200_000),
    "a cost as an object": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "cost": {"input_tokens_cost": Decimal("0.1"), "total_cost": Decimal("0.0092")},
        },
        9_200_000,
    ),
    "a cost as an object, in another currency": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "cost": {"currency": "EUR", "total_cost": Decimal("0.0092")},
        },
        14_000,
    ),
    "a cost in another currency": (
        {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.0092, "currency": "CNY"},
        14_000,
    ),
    "a cost in dollars": (
        {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.0092, "cost_currency": "Usd"},
        9_200_000,
    ),
    "a cost as an object, in dollars": (
        {"cost": {"currency": "USD", "total_cost": Decimal("0.0092")}},
        9_200_000,
    ),
    "xAI's ticks": (
        {"prompt_tokens": 10, "completion_tokens": 2, "cost_in_usd_ticks": 92_000_000},
        9_200_000,
    ),
    "xAI's ticks as text": ({"cost_in_usd_ticks": "92000000"}, 9_200_000),
    "xAI's ticks as a fraction": ({"cost_in_usd_ticks": Decimal("92000000.0")}, 9_200_000),
    "xAI's ticks, absurd": (
        {"prompt_tokens": 10, "completion_tokens": 2, "cost_in_usd_ticks": Decimal("1e400")},
        14_000,
    ),
    "xAI's ticks, and a cost of zero from a gateway": (
        {"cost": 0, "cost_in_usd_ticks": 92_000_000},
        9_200_000,
    ),
    "a cost in credits, and in dollars": (
        {"prompt_tokens": 10, "completion_tokens": 2, "cost": 92, "cost_usd": Decimal("0.0092")},
        9_200_000,
    ),
    "an estimated cost": ({"estimated_cost": Decimal("0.0092")}, 9_200_000),
    "a free call": ({"prompt_tokens": 10, "completion_tokens": 2, "cost": 0}, 0),
}


@pytest.mark.parametrize(("reported", "nanos"), CALLS.values(), ids=CALLS)
def test_each_provider_has_its_own_arithmetic(reported: dict[str, Any], nanos: int) -> None:
    assert billed(reported) == nanos


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("reported", "nanos"),
    [
        (ZEROS, 10 * 1000 + 20 * 2000),
        ({**ZEROS, "cost": 0}, 10 * 1000 + 20 * 2000),
        ({"cost": 0}, 10 * 1000 + 20 * 2000),
        ({**ZEROS, "prompt_tokens": 7}, 7 * 1000 + 20 * 2000),
        ({**ZEROS, "cost": Decimal("0.0092")}, 9_200_000),
        ({"prompt_tokens": 7, "completion_tokens": 20, "cost": 0}, 0),
    ],
)
def test_zeros_after_text_are_a_placeholder(reported: dict[str, Any], nanos: int) -> None:
    assert billed(reported, chunks=20) == nanos


def test_zeros_of_a_free_model_count() -> None:
    free = Price.flat(Decimal(0), Decimal(0))
    assert billed({**ZEROS, "cost": 0}, chunks=20, price=free) == 0
    assert billed({**ZEROS, "cost": 0}, chunks=20, price=None) == 0


def test_each_choice_reports_its_own_usage() -> None:
    meter = Meter(PRICE, prompt_tokens=10, began=NOON)
    for index, tokens in ((0, 3), (1, 5), (0, 4)):
        meter.add_usage({"prompt_tokens": 20, "completion_tokens": tokens}, index)
    assert meter.cost() == 20 * 1000 + 9 * 2000


def test_prompt_and_answer_may_be_reported_separately() -> None:
    meter = Meter(PRICE, prompt_tokens=10, began=NOON)
    cached = {"prompt_tokens_details": {"cached_tokens": 1900}}
    meter.add_usage({"prompt_tokens": 2000, "completion_tokens": 1, **cached})
    meter.count(1, "w ")
    meter.add_usage({"completion_tokens": 10})
    assert meter.cost() == 310_000


USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
NONE_USED = {"prompt_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"usage": USAGE}, [(None, USAGE)]),
        ({"usage": None, "x_groq": {"id": "r", "usage": USAGE}}, [(None, USAGE)]),
        ({"usageMetadata": USAGE}, [(None, USAGE)]),
        ({"choices": [{"index": 1, "usage": USAGE}]}, [(1, USAGE)]),
        ({"choices": [{"usage": USAGE}, {"usage": USAGE}]}, [(0, USAGE), (1, USAGE)]),
        ({"choices": [None, {"usage": 5}], "usage": []}, []),
        ({"usage": {}, "choices": [{"index": 0, "usage": USAGE}]}, [(0, USAGE)]),
        ({"usage": {}, "x_groq": {"usage": USAGE}}, [(None, USAGE)]),
        ({"eval_count": 5}, [(None, {"eval_count": 5})]),
        # The cost next to the usage.
        ({"usage": USAGE, "cost": 1}, [(None, {**USAGE, "cost": 1})]),
        ({"usage": {**USAGE, "cost": 2}, "cost": 1}, [(None, {**USAGE, "cost": 2})]),
        ({"choices": [], "cost": "1"}, [(None, {"choices": [], "cost": "1"})]),
        ({"x_nanogpt_pricing": {"amount": 1}}, [(None, {"amount": 1, "cost": {"amount": 1}})]),
        # Zeros are placeholders.
        ({"usage": NONE_USED, "x_groq": {"usage": USAGE}}, [(None, USAGE)]),
        ({"usage": NONE_USED, "choices": [{"usage": USAGE}]}, [(0, USAGE)]),
        ({"usage": NONE_USED}, [(None, NONE_USED)]),
    ],
)
def test_usage_is_found_in_each_place(answer: dict[str, Any], found: list[Any]) -> None:
    assert list(usage.find(answer)) == found


NAMES = st.sampled_from(
    [
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "input_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "cached_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "reasoning_tokens",
        "audio_tokens",
        "cost",
        "is_byok",
        "cost_details",
        "upstream_inference_cost",
        "cost_in_usd_ticks",
        "total_cost",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(prices, st.lists(st.dictionaries(NAMES, JSON), max_size=4), st.integers(0, 10**12))
def test_any_report_is_billed_within_the_reservation(
    price: Price, reports: list[dict[str, Any]], granted: int
) -> None:
    meter = Meter(price, prompt_tokens=10, began=NOON)
    meter.granted = granted
    for report in reports:
        meter.add_usage(report)
        meter.count(1, "w ")
        assert 0 <= meter.billed <= granted
        assert meter.prompt_tokens >= 0
        assert meter.overrun >= 0
