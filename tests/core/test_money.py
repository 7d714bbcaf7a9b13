"""Amounts: which values are valid, their exact amount, and what is refused before any
arithmetic."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wattfare_mw import RequestLimit, WattfareError, calls, money
from wattfare_mw.types import encode

ABSURD = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.sampled_from((0, 1)),
    st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple),
    st.one_of(st.integers(-30, 30), st.integers(-(10**9), 10**9)),
)
ANYTHING = st.one_of(
    st.integers(),
    st.integers(min_value=0, max_value=10**9),
    st.floats(),
    st.floats(min_value=0, max_value=1e9),
    st.decimals(),
    st.decimals(min_value=0, max_value=10**9, places=9),
    ABSURD,
    st.booleans(),
    st.text(),
    st.binary(),
    st.none(),
    st.fractions(),
    st.complex_numbers(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.integers()),
    st.builds(object),
)


def expected_nanos(value: Any) -> int | None:
    """The amount of a value as a cap, computed with fractions instead. None if it is invalid."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        if value and value.adjusted() > 30:
            return None
        if value and value.adjusted() < -60:
            return 0 if value > 0 else None
    exact = Fraction(value)
    if not 0 <= exact <= 10**9:
        return None
    return int(exact * 10**9)


@given(ANYTHING)
@example(Decimal("1e999999999"))
@example(Decimal("-1e999999999"))
@example(Decimal("1e-999999999"))
@example(Decimal("sNaN"))
@example(Decimal("-0"))
@example(-0.0)
@example(float("inf"))
@example(10**5000)
@example(1_000_000_000)
@example(Decimal("1000000000.0000000001"))
@example(5e-324)
def test_any_value_is_an_exact_limit_or_is_refused(value: Any) -> None:
    assume(value is not None)
    nanos = expected_nanos(value)
    if nanos is None:
        with pytest.raises(WattfareError) as caught:
            calls.create_session("u1", value)
        assert (caught.value.code, caught.value.status) == ("invalid_request", 400)
        with pytest.raises(WattfareError):
            RequestLimit(value)
        return
    body = calls.create_session("u1", value).body
    assert body is not None
    written = body.removeprefix(b'{"appUserId":"u1","requestLimit":{"monthlyUsd":')
    number = written.removesuffix(b"}}").decode()
    assert json.loads(number) >= 0  # other parsers may round it; we keep each digit
    assert Fraction(number) * 10**9 == nanos
    assert money.cap_nanos(value) == nanos


@given(st.integers(0, 10**21))
def test_nanos_to_usd_and_back(nanos: int) -> None:
    amount = money.usd(nanos)
    assert Fraction(amount) == Fraction(nanos, 10**9)
    assert money.nanos_floor(amount) == money.nanos_ceil(amount) == nanos
    assert encode(amount).decode() == str(amount)


@given(st.decimals(min_value=0, max_value=10**12, allow_nan=False))
def test_rounding_changes_less_than_a_nano(value: Decimal) -> None:
    exact = Fraction(value) * 10**9
    floor, ceil = money.nanos_floor(value), money.nanos_ceil(value)
    assert floor <= exact <= ceil
    assert ceil - floor == (exact.denominator != 1)


PRICES = st.one_of(
    st.just(Decimal(0)),
    st.decimals(min_value=0, max_value=1000, allow_nan=False, places=15),
    st.just(Decimal("1e-200")),
)


@given(st.dictionaries(st.sampled_from("abc"), PRICES, min_size=1), st.decimals(0, 1, places=4))
def test_prices_in_whole_units(prices: dict[str, Decimal], factor: Decimal) -> None:
    per_nano, units = money.in_whole_units(prices, factor)
    for name, price in prices.items():
        exact = Fraction(price) * Fraction(factor) * 10**9 * per_nano
        assert exact <= units[name] < exact + 1


def test_extreme_exponents_take_no_time() -> None:
    began = time.thread_time()
    for value in ("1e999999999", "-1e999999999", "-1e-999999999", "9e999999999999999999"):
        with pytest.raises(ValueError, match="from 0 to"):
            money.amount(Decimal(value))
    for zero in ("0e999999999", "-0e-999999999", "-0"):
        assert str(money.amount(Decimal(zero))) == "0"
    assert money.nanos_ceil(Decimal("1e-999999999")) == 1
    assert money.nanos_floor(Decimal("1e-999999999")) == 0
    # The smallest amount, with no digit lost.
    assert money.in_whole_units({"a": Decimal("1e-999999999")})[1] == {"a": 1}
    assert time.thread_time() - began < 5


def test_far_digits_are_not_lost() -> None:
    hair_more, hair_less = Decimal("0.000001" + "0" * 90 + "1"), Decimal("0." + "9" * 100)
    assert money.nanos_ceil(hair_more) == 1001
    assert money.cap_nanos(hair_less) == 999_999_999
    per_nano, units = money.in_whole_units({"a": hair_more})
    assert -(-units["a"] // per_nano) == 1001


@pytest.mark.parametrize(
    ("value", "most"), [(1, 0), (Decimal("0.1"), 0), (10**12 + 1, money.MAX_AMOUNT_USD)]
)
def test_amount_above_the_maximum_is_refused(value: Any, most: int) -> None:
    with pytest.raises(ValueError, match="from 0 to"):
        money.amount(value, most=most)


def test_none_means_no_cap() -> None:
    assert money.cap_nanos(None) is None
    assert money.cap_usd(None) is None
    assert RequestLimit().monthly_usd is None
