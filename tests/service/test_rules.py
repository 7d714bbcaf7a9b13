"""The money rules, for any values."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from wattfare_mw.errors import (
    WattfareBudgetExceededError,
    WattfareGrantError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
)
from wattfare_mw.money import dollars
from wattfare_mw.service.ledger import migrate, rules
from wattfare_mw.service.records import Bounds, Connection, GrantBudget, Reservation, Terms, Totals

NOW = 1_796_000_000  # 2026-11-29
amounts = st.integers(0, 10**18)
caps = st.none() | amounts
terms = st.builds(Terms, operator_pays=st.booleans(), ceiling=caps)
totals = st.builds(Totals, amounts, amounts)
bounds = st.tuples(amounts, amounts).map(lambda pair: Bounds(min(pair), max(pair)))


def no_more(one: int | None, other: int | None) -> bool:
    return other is None or (one is not None and one <= other)


@given(st.just(UNSET) | caps, caps, terms)
def test_approval_sets_the_lowest_cap(asked, limit, terms) -> None:
    cap = rules.cap_to_approve(asked, limit, terms)
    wanted = limit if asked is UNSET else asked
    ceiling = terms.ceiling if terms.operator_pays else None
    for bound in (wanted, limit, ceiling):
        assert no_more(cap, bound)
    assert cap in (wanted, limit, ceiling)


@given(st.builds(Connection, caps, st.booleans()) | st.none(), totals, bounds, terms)
def test_reservation_stays_within_the_budget(connection, before, call, terms) -> None:
    cap = rules.cap_in_force(connection, terms) if connection else 0
    try:
        after, granted = rules.reserve(connection, before, call, terms, NOW)
    except WattfareNotConnectedError:
        assert connection is None or not connection.connected
    except WattfareBudgetExceededError:
        assert cap is not None
        assert before.billed + call.least > cap
    except WattfareRateLimitError as refusal:
        # It would fit without the calls in flight, so waiting helps.
        assert cap is not None
        assert before.billed + call.least <= cap < before.billed + before.reserved + call.least
        assert refusal.retry_after  # noqa: PT017
    else:
        assert connection.connected
        assert call.least <= granted <= call.most
        assert after == Totals(before.billed, before.reserved + granted)
        # Less than the request is granted only if that is all that is left.
        assert granted == call.most or after.billed + after.reserved == cap
        assert no_more(after.billed + after.reserved, cap)


@given(totals, amounts, st.integers(-(10**18), 10**19))
def test_settlement_bills_within_the_reservation(before, reserved, cost) -> None:
    before = Totals(before.billed, before.reserved + reserved)
    after, billed = rules.settle(before, reserved, cost)
    assert 0 <= billed <= reserved
    assert billed == cost or cost < 0 or cost > reserved
    assert after == Totals(before.billed + billed, before.reserved - reserved)


@given(st.builds(Connection, caps, st.booleans()) | st.none(), totals, terms)
def test_status_matches_the_connection(connection, totals, terms) -> None:
    status = rules.status(connection, totals, terms)
    assert status.connected is bool(connection and connection.connected)
    if not status.connected:
        assert (status.limits, status.remaining_usd) == (None, 0)
    elif status.remaining_usd is None:
        assert status.limits.monthly_usd is None
    else:
        assert 0 <= status.remaining_usd <= status.limits.monthly_usd


@given(
    st.builds(GrantBudget, st.integers(0, 3), amounts, st.integers(0, 100), totals),
    bounds,
    st.integers(0, 100),
    amounts,
    st.booleans(),
)
def test_grant_reservation_stays_within_the_grant(before, call, now, cost, generated) -> None:
    try:
        held, granted = rules.reserve_grant(before, call, now)
    except (WattfareGrantError, WattfareRateLimitError):
        room = before.cap - before.totals.billed - before.totals.reserved
        assert before.requests < 1 or now >= before.expires_at or call.least > room
        return
    assert now < before.expires_at
    assert held.requests == before.requests - 1 >= 0
    assert held.totals.billed + held.totals.reserved <= held.cap
    after, billed = rules.settle_grant(held, granted, cost, generated=generated)
    assert after.requests == before.requests - generated
    assert after.totals == Totals(before.totals.billed + billed, before.totals.reserved)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_rounded_amounts_in_messages_are_true(one: int, other: int) -> None:
    """Rounding never makes the remaining budget look sufficient."""
    left, needed = sorted((one, other))
    texts = [dollars(left, up=False), dollars(needed, up=True)]
    rounded = [Decimal(text.removeprefix("$").replace(",", "")) for text in texts]
    assert rounded[0] * 10**9 <= left <= needed <= rounded[1] * 10**9
    assert all(len(text.rpartition(".")[2]) >= 2 for text in texts)


def test_amounts_for_people() -> None:
    for nanos, down, up in [
        (0, "$0.00", "$0.00"),
        (1, "$0.000000001", "$0.000000001"),
        (4_123, "$0.0000041", "$0.0000042"),
        (41_234_567, "$0.041", "$0.042"),
        (40_000_000, "$0.04", "$0.04"),
        (999_999_999, "$0.99", "$1.00"),
        (1_234_567_890_123, "$1,234.56", "$1,234.57"),
    ]:
        assert (dollars(nanos, up=False), dollars(nanos, up=True)) == (down, up)


def test_budget_resets_at_the_end_of_the_month() -> None:
    for now, then in [
        ("2026-11-30T23:59:59", "2026-12-01"),
        ("2026-12-31T23:59:59", "2027-01-01"),
        ("2026-12-01T00:00:00", "2027-01-01"),
    ]:
        moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
        expected = datetime.fromisoformat(then).replace(tzinfo=UTC)
        assert rules.month_after(int(moment.timestamp())) == expected


@given(amounts, amounts, st.booleans())
def test_expired_reservation_is_billed_as_metered(
    reserved: int, metered: int, stream: bool
) -> None:
    lost = Reservation(reserved, stream, metered, unbounded=True)
    assert rules.expire(lost) == (metered, "lost")
    plain = Reservation(reserved, stream, metered)
    assert rules.expire(plain) == ((metered, "expired") if stream else (reserved, "abandoned"))


def test_months_are_utc() -> None:
    from datetime import timezone

    late = datetime(2026, 11, 30, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert rules.month_of(late) == "2026-12"


def test_postgresql_keeps_idempotency_keys_as_long_as_the_rules_say() -> None:
    migrations = Path(migrate.__file__).parent / "migrations" / "postgresql"
    # A later migration replaces the function, and its file sorts last.
    *_, newest = sorted(migrations.glob("*_reserve.sql"))
    [seconds] = re.findall(r"created_at > o_now - (\d+)", newest.read_text("utf-8"))
    assert int(seconds) == rules.KEY_SECONDS


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**5), max_size=60))
def test_stream_is_recorded_at_most_ten_times(reserved: int, growth: list[int]) -> None:
    """The unrecorded cost is less than a tenth of the reservation."""
    cost = recorded = times = 0
    for more in growth:
        cost += more
        if rules.is_worth_recording(reserved, recorded, cost):
            recorded = min(cost, reserved)
            times += 1
        assert 0 <= 10 * (min(cost, reserved) - recorded) < reserved
    assert times <= 10


def test_stream_without_a_cost_is_not_recorded() -> None:
    assert not rules.is_worth_recording(0, 0, 0)
    assert not rules.is_worth_recording(0, 0, 5)
    assert not rules.is_worth_recording(100, 0, 9)
    assert rules.is_worth_recording(100, 0, 10)
