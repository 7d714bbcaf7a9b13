"""The money rules over any values and any order; and the SQLite store, with the rules as its
oracle."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import UNSET

from wattfare_mw.errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareGrantError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
)
from wattfare_mw.service import rules
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.queries import Order, Outcome
from wattfare_mw.service.rules import Bounds, Connection, Grant, Terms, Totals
from wattfare_mw.service.store import SQLiteStore

amounts = st.integers(0, 10**18)
caps = st.none() | amounts
terms = st.builds(Terms, operator_pays=st.booleans(), ceiling=caps)
totals = st.builds(Totals, amounts, amounts)
bounds = st.tuples(amounts, amounts).map(lambda pair: Bounds(min(pair), max(pair)))


def no_more(one: int | None, other: int | None) -> bool:
    return other is None or (one is not None and one <= other)


@given(st.just(UNSET) | caps, caps, terms)
def test_an_approval(asked, limit, terms) -> None:
    cap = rules.cap_to_approve(asked, limit, terms)
    wanted = limit if asked is UNSET else asked
    if terms.operator_pays:
        assert no_more(cap, wanted)
        assert no_more(cap, limit)
        assert no_more(cap, terms.ceiling)
        assert cap in (wanted, limit, terms.ceiling)
    else:
        assert cap == wanted


@given(st.builds(Connection, caps, st.booleans()) | st.none(), totals, bounds, terms)
def test_a_reservation(connection, before, call, terms) -> None:
    cap = rules.cap_in_force(connection, terms) if connection else 0
    try:
        after, granted = rules.reserve(connection, before, call, terms)
    except WattfareNotConnectedError:
        assert connection is None or not connection.connected
    except WattfareBudgetExceededError:
        assert cap is not None
        assert before.billed + call.least > cap
    except WattfareRateLimitError as refusal:
        # It fits, but for what is in flight; waiting helps.
        assert cap is not None
        assert before.billed + call.least <= cap < before.billed + before.reserved + call.least
        assert refusal.retry_after  # noqa: PT017
    else:
        assert connection.connected
        assert call.least <= granted <= call.most
        assert after == Totals(before.billed, before.reserved + granted)
        # Less than was asked for is given only where that is all there is.
        assert granted == call.most or after.billed + after.reserved == cap
        assert no_more(after.billed + after.reserved, cap)


@given(totals, amounts, st.integers(-(10**18), 10**19))
def test_settling(before, reserved, cost) -> None:
    before = Totals(before.billed, before.reserved + reserved)
    after, billed = rules.settle(before, reserved, cost)
    assert 0 <= billed <= reserved
    assert billed == cost or cost < 0 or cost > reserved
    assert after == Totals(before.billed + billed, before.reserved - reserved)


@given(st.builds(Connection, caps, st.booleans()) | st.none(), totals, terms)
def test_a_status(connection, totals, terms) -> None:
    status = rules.status(connection, totals, terms)
    assert status.connected is bool(connection and connection.connected)
    if not status.connected:
        assert (status.limits, status.remaining_usd) == (None, 0)
    elif status.remaining_usd is None:
        assert status.limits.monthly_usd is None
    else:
        assert 0 <= status.remaining_usd <= status.limits.monthly_usd


@given(
    st.builds(Grant, st.integers(0, 3), amounts, st.integers(0, 100), totals),
    bounds,
    st.integers(0, 100),
    amounts,
    st.booleans(),
)
def test_a_grant(before, call, now, cost, generated) -> None:
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


def test_months_are_utc() -> None:
    from datetime import timezone

    late = datetime(2026, 11, 30, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert rules.month_of(late) == "2026-12"


class StoreMachine(RuleBasedStateMachine):
    """Any order of events, in the store and in the rules; both say the same after each."""

    users = st.sampled_from(["u1", "u2"])
    small = st.integers(0, 100)

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now = datetime(2026, 10, 31, 12, tzinfo=UTC)
        self.terms = Terms()
        self.open()
        self.app, _ = new_app("app", "test")
        self.do(self.store.add_app(self.app))
        self.connections: dict[str, Connection] = {}
        self.totals: dict[tuple[str, str], Totals] = {}
        self.grants: dict[str, Grant] = {}
        self.open_calls: dict[str, tuple[Order, str, int]] = {}
        self.count = 0

    def open(self) -> None:
        url = f"sqlite:///{Path(self.directory.name) / 'ledger.db'}"
        self.store = SQLiteStore(url, clock=lambda: self.now)

    def do(self, job):
        return asyncio.run(job)

    def teardown(self) -> None:
        self.do(self.store.close())
        self.directory.cleanup()

    @property
    def month(self) -> str:
        return rules.month_of(self.now)

    @rule(user=users, cap=st.none() | small)
    def connect(self, user: str, cap: int | None) -> None:
        self.do(self.store.connect(self.app.id, user, cap))
        self.connections[user] = Connection(cap)

    @rule(user=users)
    def revoke(self, user: str) -> None:
        self.do(self.store.revoke(self.app.id, user))
        if user in self.connections:
            self.connections[user] = Connection(self.connections[user].cap, connected=False)

    @rule(requests=st.integers(1, 3), cap=small, life=st.integers(1, 40))
    def grant(self, requests: int, cap: int, life: int) -> None:
        self.count += 1
        expires = int((self.now + timedelta(days=life)).timestamp())
        grant = Grant(requests, cap, expires)
        self.do(self.store.add_grant(self.app.id, f"g{self.count}", grant))
        self.grants[f"g{self.count}"] = grant

    @rule(data=st.data(), pair=st.tuples(small, small), ceiling=st.none() | small)
    def reserve(self, data, pair: tuple[int, int], ceiling: int | None) -> None:
        payer = data.draw(st.sampled_from(["u1", "u2", "g-unknown", *self.grants]))
        self.count += 1
        call = Bounds(min(pair), max(pair))
        by_grant = payer.startswith("g")
        order = Order(
            id=f"call{self.count}",
            app_id=self.app.id,
            user_id=None if by_grant else payer,
            grant_hash=payer if by_grant else None,
            model="m",
            bounds=call,
            request_id="r",
        )
        self.terms = Terms(operator_pays=ceiling is not None, ceiling=ceiling)
        expected: object
        try:
            if by_grant:
                expected, granted = rules.reserve_grant(
                    self.grants.get(payer), call, int(self.now.timestamp())
                )
            else:
                before = self.totals.get((payer, self.month), Totals())
                connection = self.connections.get(payer)
                expected, granted = rules.reserve(connection, before, call, self.terms)
        except WattfareError as refusal:
            with pytest.raises(type(refusal)):
                self.do(self.store.reserve(order, self.terms))
            return
        assert self.do(self.store.reserve(order, self.terms)) == granted
        if by_grant:
            self.grants[payer] = expected
        else:
            self.totals[payer, self.month] = expected
        self.open_calls[order.id] = (order, self.month, granted)

    @precondition(lambda self: self.open_calls)
    @rule(data=st.data(), cost=st.integers(-10, 200), generated=st.booleans())
    def settle(self, data, cost: int, generated: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.open_calls)))
        outcome = Outcome(ended="completed", generated=generated, cost=cost)
        billed = self.expect_settled(call, cost, generated)
        assert self.do(self.store.settle(call, outcome)) == billed
        assert self.do(self.store.settle(call, outcome)) is None

    @rule()
    def restart(self) -> None:
        self.do(self.store.close())
        self.open()
        assert self.do(self.store.settle_abandoned()) == len(self.open_calls)
        for call in list(self.open_calls):
            self.expect_settled(call, self.open_calls[call][2], True)

    @rule(days=st.integers(1, 20))
    def time_passes(self, days: int) -> None:
        self.now += timedelta(days=days)

    def expect_settled(self, call: str, cost: int, generated: bool) -> int:
        order, month, granted = self.open_calls.pop(call)
        if order.grant_hash:
            grant = self.grants[order.grant_hash]
            grant, billed = rules.settle_grant(grant, granted, cost, generated=generated)
            self.grants[order.grant_hash] = grant
        else:
            key = (order.user_id, month)
            self.totals[key], billed = rules.settle(self.totals[key], granted, cost)
        return billed

    @invariant()
    def the_store_says_what_the_rules_say(self) -> None:
        for user in ("u1", "u2"):
            connection, totals = self.do(self.store.account(self.app.id, user))
            assert connection == self.connections.get(user)
            assert totals == self.totals.get((user, self.month), Totals())

    @invariant()
    def the_rows_prove_the_totals(self) -> None:
        assert self.do(self.store.verify()) == []


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase


async def test_decisions_in_one_commit_do_not_undo_each_other(tmp_path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.connect(app.id, "u1", 37 * 9)

    def order(number: int) -> Order:
        return Order(
            id=str(number),
            app_id=app.id,
            user_id="u1",
            model="m",
            bounds=Bounds(9, 9),
            request_id="r",
        )

    answers = await asyncio.gather(
        *(store.reserve(order(number), Terms()) for number in range(200)), return_exceptions=True
    )
    assert answers.count(9) == 37
    assert sum(isinstance(answer, WattfareRateLimitError) for answer in answers) == 163
    assert (await store.account(app.id, "u1"))[1] == Totals(0, 37 * 9)
    # One that is cancelled while it waits is carried out all the same.
    waiting = asyncio.ensure_future(store.settle("0", Outcome(ended="completed", cost=4)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    settled = [number for number, answer in enumerate(answers) if answer == 9]
    for number in settled:
        await store.settle(str(number), Outcome(ended="completed", generated=True, cost=4))
    assert (await store.account(app.id, "u1"))[1].reserved == 0
    assert await store.verify() == []
    await store.close()


async def test_a_call_belongs_to_the_month_in_which_it_was_reserved(tmp_path) -> None:
    now = datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}", clock=lambda: now)
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.connect(app.id, "u1", 5)
    order = Order(
        id="1", app_id=app.id, user_id="u1", model="m", bounds=Bounds(5, 5), request_id="r"
    )
    await store.reserve(order, Terms())
    october, now = now, now + timedelta(seconds=1)
    assert (await store.account(app.id, "u1"))[1] == Totals()
    assert await store.settle("1", Outcome(ended="completed", generated=True, cost=4)) == 4
    assert (await store.account(app.id, "u1"))[1] == Totals()
    now = october
    assert (await store.account(app.id, "u1"))[1] == Totals(billed=4)
    assert await store.verify() == []
    await store.close()


async def test_a_database_error_of_one_leaves_the_others_alone(tmp_path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app, _ = new_app("app", "test")
    jobs = [store.add_app(app), store.add_app(app), store.connect(app.id, "u1", 5)]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert answers[0] is None
    assert answers[1].status == 503
    assert answers[2] is None
    assert (await store.account(app.id, "u1"))[0] == Connection(5)
    await store.close()


def test_a_transaction_that_sqlite_itself_gave_up(tmp_path) -> None:
    """A full disk rolls back what came before in the same commit, and says so to one only."""
    import threading

    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import OperationalError

    from wattfare_mw.service import queries
    from wattfare_mw.service.sqlite import Writer

    def full_disk(sql) -> None:
        sql.connection.cursor().execute("ROLLBACK")
        raise OperationalError("INSERT", {}, Exception("disk full"))

    writer = Writer(make_url(f"sqlite:///{tmp_path / 'ledger.db'}"))
    gate = threading.Event()
    writer.submit(lambda _: gate.wait(60))  # so that the next ones share a commit
    before = writer.submit(lambda sql: queries.setting(sql, "before", b"1"))
    failed = writer.submit(full_disk)
    after = writer.submit(lambda sql: queries.setting(sql, "after", b"1"))
    gate.set()
    assert before.result(60) == after.result(60) == b"1"
    assert isinstance(failed.exception(60), OperationalError)
    for name in ("before", "after"):
        kept = writer.submit(lambda sql, name=name: queries.setting(sql, name, b"2"))
        assert kept.result(60) == b"1"
    writer.close()


async def test_a_total_that_its_rows_do_not_prove_is_found(tmp_path) -> None:
    import sqlite3

    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.connect(app.id, "u1", None)
    await store.reserve(
        Order(id="1", app_id=app.id, user_id="u1", model="m", bounds=Bounds(5, 5), request_id="r"),
        Terms(),
    )
    await store.settle("1", Outcome(ended="completed", generated=True, cost=5))
    assert await store.verify() == []
    await store.close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE totals SET billed_nanos = billed_nanos + 1")
    connection.commit()
    connection.close()
    store = SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert len(await store.verify()) == 1
    await store.close()


async def test_a_database_of_another_version_is_left_alone(tmp_path) -> None:
    import sqlite3

    await SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}").close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(WattfareError, match="9999"):
        SQLiteStore(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_the_migrations_make_the_schema(tmp_path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from wattfare_mw.service.schema import metadata

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    asyncio.run(SQLiteStore(url).close())
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
