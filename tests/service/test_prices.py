"""What a model costs: by the upstream's list, else by the published one; never by a guess."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw.service.chat.price import Price
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
    ],
)
def test_what_is_no_price(pricing: object, why: Unpriced) -> None:
    assert price_of(pricing) is why


def test_every_rate_that_may_come_to_count_bounds_the_cost() -> None:
    price = price_of(
        {
            **BASE,
            "input_cache_write": "0.00000125",
            "internal_reasoning": "0.000003",
            "request": "0.01",
            "overrides": [
                {"min_prompt_tokens": 200_000, "prompt": "0.000009", "completion": "0.000001"},
                {"request": "0.02", "completion": "0.000008"},
            ],
        }
    )
    assert isinstance(price, Price)
    assert price.cost(1000, 100) == 1000 * 1000 + 100 * 2000 + 20_000_000
    assert price.bound(1000, 100) == 1000 * 9000 + 100 * 8000 + 20_000_000


def test_an_exact_price_has_every_digit() -> None:
    price = price_of({"prompt": 0.0000001, "completion": "0.00000000015"})
    assert isinstance(price, Price)
    assert (price.prompt, price.completion) == (Decimal("1E-7"), Decimal("1.5E-10"))
    # Rounded up once, and not for each side.
    assert price.cost(0, 1) == 1
    assert price.cost(0, 7) == 2
    assert Price(Decimal("5E-10"), Decimal("5E-10"), Decimal("5E-10")).cost(1, 1) == 2


def test_an_entry_of_another_shape_hides_no_other() -> None:
    models = [5, {"id": 7}, {"id": "odd", "pricing": "free"}, {"id": "m", "pricing": BASE}]
    assert set(read_prices(json.dumps({"data": models}).encode())) == {"m"}


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
        return  # this is no JSON
    price = read_prices(body.encode())["m"]
    if isinstance(price, Price):
        assert 0 <= price.cost(1, 1) <= price.bound(1, 1)


def test_the_published_price() -> None:
    """As published; should it change in a later version of the data, so may this."""
    price = published("gpt-4o", OPENAI)
    assert price is not None
    assert (price.prompt, price.completion) == (Decimal("0.0000025"), Decimal("0.00001"))
    # By the name alone, where nobody knows who is behind the URL.
    assert published("gpt-4o", "http://127.0.0.1:1/v1") == price
    # A cache for an hour is dearer, and a long prompt.
    sonnet = published("claude-sonnet-4-5", "https://api.anthropic.com/v1")
    assert sonnet is not None
    assert sonnet.bound(10**6, 0) > sonnet.cost(10**6, 0) == 3 * 10**9
    # A fee for each request.
    sonar = published("sonar-pro", "https://api.perplexity.ai")
    assert sonar is not None
    assert sonar.cost(0, 0) > 0


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model", OPENAI),
        ("claude-sonnet-4-5", OPENAI),  # not theirs
        ("fake/unpriced", "http://127.0.0.1:1/v1"),
        ("text-embedding-3-small", OPENAI),  # answers nothing
    ],
)
def test_what_is_not_published(model: str, url: str) -> None:
    assert published(model, url) is None
