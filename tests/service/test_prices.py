"""What a model costs: by the upstream's list, or else by the published one. It is never guessed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st
from support.prices import NOON

from wattfare_mw.money import nanos_ceil
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.models.price_lists import Unpriced, published, read_prices

BASE = {"prompt": "0.000001", "completion": "0.000002"}
OPENAI = "https://api.openai.com/v1"


def price_of(pricing: object) -> Price | Unpriced:
    return read_prices(json.dumps({"data": [{"id": "m", "pricing": pricing}]}).encode())["m"]


@pytest.mark.parametrize(
    ("pricing", "why"),
    [
        (None, Unpriced.NOT_LISTED),
        ({}, Unpriced.NOT_LISTED),
        ({"prompt": "1"}, Unpriced.NOT_LISTED),
        ({"prompt": None, "completion": None, "request": None}, Unpriced.NOT_LISTED),
        # A fee for each message instead of prices for tokens, as at Poe.
        ({"prompt": None, "completion": None, "request": "0.03"}, Unpriced.NOT_FIXED),
        ({"request": "cheap"}, Unpriced.NOT_FIXED),
        ({"prompt": "-1", "completion": "-1"}, Unpriced.NOT_FIXED),
        ({**BASE, "completion": "-0.1"}, Unpriced.NOT_FIXED),
        ({**BASE, "request": "-1"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "NaN"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "Infinity"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "1e99"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "cheap"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": True}, Unpriced.NOT_FIXED),
        ({**BASE, "input_cache_write": "-1"}, Unpriced.NOT_FIXED),
        ({**BASE, "overrides": "later"}, Unpriced.NOT_FIXED),
        ({**BASE, "overrides": [{"prompt": "-1"}]}, Unpriced.NOT_FIXED),
        ({**BASE, "overrides": [{"on_sundays": True, "prompt": "0"}]}, Unpriced.NOT_FIXED),
        ({**BASE, "overrides": [{"utc_start": "noon"}]}, Unpriced.NOT_FIXED),
        ({**BASE, "overrides": [{"min_prompt_tokens": "many"}]}, Unpriced.NOT_FIXED),
        ({**BASE, "per_haiku": "0.01"}, Unpriced.NOT_FIXED),
        ({**BASE, "per_haiku": [{"price": "0.01"}]}, Unpriced.NOT_FIXED),
        ({**BASE, "currency": "EUR"}, Unpriced.NOT_FIXED),
        ({**BASE, "currency": ["USD"]}, Unpriced.NOT_FIXED),
        ({**BASE, "currency_unit": "EUR"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "$$1"}, Unpriced.NOT_FIXED),
        ({**BASE, "prompt": "1 $"}, Unpriced.NOT_FIXED),
        ("free", Unpriced.NOT_FIXED),
        ([BASE], Unpriced.NOT_FIXED),
        ([], Unpriced.NOT_LISTED),
        ({**BASE, "discount": 1.5}, Unpriced.NOT_FIXED),
    ],
)
def test_invalid_price_entry_gives_no_price(pricing: object, why: Unpriced) -> None:
    assert price_of(pricing) is why


def cost(price: Price, prompt: int, completion: int, **parts: int) -> int:
    return price.cost(TokenCounts(prompt=prompt, completion=completion, **parts), NOON)


def test_every_rate_is_billed_and_bounded() -> None:
    price = price_of(
        {
            **BASE,
            "input_cache_write": "0.00000125",
            "internal_reasoning": "0.000003",
            "request": "0.01",
            "image": "0.5",
            "overrides": [
                {"min_prompt_tokens": 200_000, "prompt": "0.000009", "completion": "0.000001"},
                {"utc_start": "16:30", "utc_end": "00:30", "completion": "0.000008"},
            ],
        }
    )
    assert isinstance(price, Price)
    assert cost(price, 1000, 100) == 1000 * 1000 + 100 * 2000 + 10_000_000
    parts = {"cache_write": 500, "reasoning": 40}
    assert cost(price, 1000, 100, **parts) == 500 * 2250 + 60 * 2000 + 40 * 3000 + 10_000_000
    assert cost(price, 200_000, 100) == 200_000 * 9000 + 100 * 1000 + 10_000_000
    night = NOON.replace(hour=23)
    used = TokenCounts(prompt=1000, completion=100)
    assert price.cost(used, night) == 1000 * 1000 + 100 * 8000 + 10_000_000
    assert price.bound(1000, 100) == 1000 * 1250 + 100 * 8000 + 10_000_000
    assert price.bound(200_000, 100) == 200_000 * 9000 + 100 * 8000 + 10_000_000


@pytest.mark.parametrize("name", ["internal_reasoning", "input_cache_read", "audio_output"])
def test_zero_rate_falls_back_to_the_base_rate(name: str) -> None:
    empty = {"per_haiku": "0", "tiers": [], "by_region": {}, "note": "", "free": False}
    price = price_of({**BASE, name: "0", **empty})
    assert isinstance(price, Price)
    used = TokenCounts(prompt=9, completion=9, cache_read=9, reasoning=5, audio_output=4)
    assert price.cost(used) == 9 * 3000


def test_price_in_the_names_of_other_gateways() -> None:
    """Synthetic's, and a list with the currency as ``currency_unit``."""
    price = price_of(
        {
            "currency_unit": "USD",
            "prompt": "$0.000001",
            "completion": "$0.000002",
            "image": "$0",
            "request": "0",
            "input_cache_reads": "$0.0000001",
            "input_cache_writes": "$0.00000125",
        }
    )
    assert isinstance(price, Price)
    assert cost(price, 100, 10, cache_read=60, cache_write=30) == 10_000 + 6000 + 37_500 + 20_000


def test_discount_lowers_the_bill_but_not_the_bound() -> None:
    price = price_of({**BASE, "discount": 0.25})
    assert isinstance(price, Price)
    assert cost(price, 100, 100) == 225_000
    assert price.bound(100, 100) == 300_000


def test_exact_price_keeps_every_digit() -> None:
    price = price_of({"prompt": 0.0000001, "completion": "0.00000000015"})
    assert isinstance(price, Price)
    assert price.rates.prompt == Decimal("1E-7")
    assert price.rates.completion == Decimal("1.5E-10")
    # Rounded up once, not once for each side.
    assert cost(price, 0, 1) == 1
    assert cost(price, 0, 7) == 2
    half = Decimal("5E-10")
    assert cost(Price.flat(half, half, half), 1, 1) == 2


@pytest.mark.parametrize(
    ("pricing", "prompt"),
    [
        # Some lists have prices for a million tokens.
        ({"prompt": 3.2664, "completion": 16.332}, "0.0000032664"),
        ({"prompt": "0", "completion": "0.05"}, "0"),
        ({"unit": "per_1m_tokens", "prompt": 0.0001, "completion": 2}, "1E-10"),
        ({"unit": "per_1k_tokens", "prompt": 0.0001, "completion": 0.0002}, "1E-7"),
        ({"unit": "per_token", "prompt": 0.5, "completion": 0.5}, "0.5"),
        (
            {"currency": "USD", "unit": "per_million_tokens", "prompt": 0.5, "completion": 0.5},
            "5E-7",
        ),
        ({"prompt": "0.0019", "completion": "0.0019"}, "0.0019"),
        # A small model costs less than a cent for a million tokens.
        ({"prompt": "0.005", "completion": "0.005"}, "5E-9"),
        ({"prompt": 0.5, "completion": 1, "unit": "per_1M_tokens"}, "5E-7"),
        ({"prompt": 0.5, "completion": 1, "unit": "1M tokens"}, "5E-7"),
        ({"prompt": 0.5, "completion": 1, "unit": "per million words"}, None),
        # These cannot be true.
        ({"prompt": "0.000001", "completion": "0.05"}, None),
        ({"unit": "per_word", "prompt": "0.000001", "completion": "0.000002"}, None),
        ({"unit": ["per_token"], "prompt": "0.000001", "completion": "0.000002"}, None),
    ],
    ids=str,
)
def test_unit_of_a_price(pricing: dict, prompt: str | None) -> None:
    price = price_of({**pricing, "request": "0.5"})
    if prompt is None:
        assert price is Unpriced.NOT_FIXED
        return
    assert isinstance(price, Price)
    assert (price.rates.prompt, price.rates.request) == (Decimal(prompt), Decimal("0.5"))


def test_odd_entry_hides_no_other_entry() -> None:
    models = [5, {"id": 7}, {"pricing": BASE}, {"id": "m", "pricing": BASE}]
    assert set(read_prices(json.dumps({"data": models}).encode())) == {"m"}


@pytest.mark.parametrize(
    ("other", "fixed"), [(BASE, True), ({**BASE, "prompt": "0.000005"}, False)]
)
def test_two_prices_of_one_model_are_not_fixed(other: dict, fixed: bool) -> None:
    models = [{"id": "m", "pricing": BASE}, {"id": "m", "pricing": other}]
    price = read_prices(json.dumps({"data": models}).encode())["m"]
    assert isinstance(price, Price) is fixed


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "completion", "request", "overrides", "input_cache_write"]),
        st.none()
        | st.text()
        | st.floats()
        | st.lists(st.dictionaries(st.just("prompt"), st.text())),
    )
)
def test_any_list_gives_a_price_or_none(pricing: dict) -> None:
    body = json.dumps({"data": [{"id": "m", "pricing": pricing}]})
    if "NaN" in body or "Infinity" in body:
        return  # this is not JSON
    price = read_prices(body.encode())["m"]
    if isinstance(price, Price):
        assert 0 <= cost(price, 1, 1) <= price.bound(1, 1)


def test_published_price_of_a_model() -> None:
    """These are the published prices. Update them if a later version of the data changes them."""
    price = published("gpt-4o", OPENAI)
    assert price is not None
    assert price.rates.prompt == Decimal("0.0000025")
    assert price.rates.completion == Decimal("0.00001")
    # By the name alone if the provider behind the URL is unknown.
    assert published("gpt-4o", "http://127.0.0.1:1/v1") == price
    # A one-hour cache costs more, and so does a long prompt.
    sonnet = published("claude-sonnet-4-5", "https://api.anthropic.com/v1")
    assert sonnet is not None
    assert sonnet.bound(10**5, 0) > cost(sonnet, 10**5, 0) == 3 * 10**8
    assert cost(sonnet, 10**6, 0) == 6 * 10**9
    # A fee for each request.
    sonar = published("sonar-pro", "https://api.perplexity.ai")
    assert sonar is not None
    assert cost(sonar, 0, 0) > 0


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-flash", "deepseek-v4-pro"])
def test_published_price_that_depends_on_the_time_of_day(model: str) -> None:
    price = published(model, "https://api.deepseek.com")
    assert price is not None
    used = Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=100)
    counts = TokenCounts(prompt=1000, cache_read=400, completion=100)
    midnight = datetime.combine(datetime.now(UTC), time(), UTC)
    costs: set[int] = set()
    for minutes in range(0, 24 * 60, 30):
        moment = midnight + timedelta(minutes=minutes)
        published_cost = calc_price(
            used, model, provider_id="deepseek", genai_request_timestamp=moment
        )
        costs.add(price.cost(counts, moment))
        assert price.cost(counts, moment) == nanos_ceil(published_cost.total_price)
    assert len(costs) == 2
    assert price.bound(1000, 100) >= max(costs)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model", OPENAI),
        ("claude-sonnet-4-5", OPENAI),  # another provider's model
        ("fake/unpriced", "http://127.0.0.1:1/v1"),
        ("text-embedding-3-small", OPENAI),  # generates no text
    ],
)
def test_model_without_a_published_price(model: str, url: str) -> None:
    assert published(model, url) is None
