"""Several payers in turn for the same user, with their own money or the operator's: what the ledger
keeps separate, and what ends with a funding."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from wattfare_mw.errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
)
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.postgresql.store import PostgreSQLStore
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.store import LEASE_SECONDS, Store
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.records import (
    Account,
    Bounds,
    Connection,
    GrantBudget,
    Granted,
    InferenceCall,
    Outcome,
    Terms,
    Totals,
)

#: Without a funding, the operator pays.
OPERATOR = Terms(operator_pays=True)
TOMORROW = int((datetime.now(UTC) + timedelta(days=1)).timestamp())


class Ledger:
    """Two processes that share a database, and an app."""

    def __init__(self, database: str) -> None:
        self.now = datetime.now(UTC)
        self.app = create_keys(database, "test app").app_id
        self.other = create_keys(database, "other app").app_id
        self.stores = [self._store(database) for _ in range(2)]
        self.store = self.stores[0]

    def _store(self, database: str) -> Store:
        if database.startswith("sqlite"):
            return SQLiteStore(database, clock=lambda: self.now)
        return PostgreSQLStore(database, lambda: self.now)

    async def connect(self, payer: str, cap: int | None = 100, **more: Any) -> bool:
        return await self.store.connect(self.app, "u1", cap, payer_id=payer, **more)

    async def fund(self, name: str, payer: str, state: str = "valid") -> None:
        row = {"id": name, "payer_id": payer, "kind": "key", "label": "a key", "state": state}
        row |= {"upstream": "https://example.test/v1", "ciphertext": b"secret"}
        row |= {"encryption_key_id": "k", "created_at": 1, "checked_at": 1}
        await self.store.transact(lambda sql: sql.execute(insert(schema.funding).values(row)))

    async def reserve(
        self, name: str, amount: int = 10, terms: Terms = OPERATOR, **more: Any
    ) -> Granted:
        account = {"app_id": self.app, "user_id": "u1"} | more
        bounds = Bounds(amount, amount)
        call = InferenceCall(id=name, model="m", request_id="r", bounds=bounds, **account)
        return await self.store.reserve(call, terms)

    async def settle(self, name: str, cost: int, **more: Any) -> int | None:
        account = Account(**({"app_id": self.app, "user_id": "u1"} | more))
        return await self.store.settle(name, account, done(cost))

    async def seen(self) -> dict[str, tuple[str | None, int | None, str | None]]:
        table = schema.payer_connections
        rows = await self.store.transact(lambda sql: sql.execute(select(table)).all())
        return {row.payer_id: (row.account_label, row.cap_nanos, row.ended) for row in rows}

    async def totals(self) -> Totals:
        return (await self.store.account(self.app, "u1"))[1]

    async def is_proved(self) -> bool:
        return await self.store.transact(verify) == []


def done(cost: int) -> Outcome:
    return Outcome(ended="completed", generated=True, cost=cost)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(database)
    for store in ledger.stores:
        await store.renew()
    yield ledger
    assert await ledger.is_proved()
    for store in ledger.stores:
        await store.close()


async def test_returning_payer_finds_their_total(ledger: Ledger) -> None:
    await ledger.connect("alice", 20, label="alice@example")
    await ledger.reserve("a1")
    await ledger.settle("a1", 7)
    await ledger.connect("bob", 15)
    assert await ledger.totals() == Totals()
    await ledger.reserve("b1")
    await ledger.settle("b1", 2)
    assert await ledger.totals() == Totals(2)
    assert await ledger.seen() == {
        "alice": ("alice@example", 20, "replaced"),
        "bob": (None, 15, None),
    }
    await ledger.connect("alice", 16)
    assert await ledger.totals() == Totals(7)
    assert await ledger.seen() == {
        "alice": ("alice@example", 16, None),
        "bob": (None, 15, "replaced"),
    }
    with pytest.raises(WattfareBudgetExceededError):
        await ledger.reserve("a2", 10)
    await ledger.store.revoke(ledger.app, "u1")
    assert (await ledger.seen())["alice"][2] == "revoked"


async def test_new_payer_cuts_off_the_calls_of_the_former_one(ledger: Ledger) -> None:
    await ledger.connect("alice")
    await ledger.reserve("a1")
    assert await ledger.connect("alice", 50, epoch=0)  # the cap alone cuts nothing off
    assert (await ledger.store.renew()).revoked == frozenset()
    assert await ledger.connect("bob", epoch=0)
    assert (await ledger.store.renew()).revoked == {"a1"}
    # The payer of the call is billed.
    assert await ledger.settle("a1", 4) == 4
    assert await ledger.totals() == Totals()
    # An expired approval does not replace a payer.
    assert not await ledger.connect("alice", epoch=0)
    assert (await ledger.store.account(ledger.app, "u1"))[0] == Connection(
        100, True, 1, "bob", others=4
    )


async def test_only_the_payer_stops_or_changes_a_connection(ledger: Ledger) -> None:
    await ledger.connect("bob")
    app = ledger.app
    assert not await ledger.store.revoke(app, "u1", payer_id="alice")
    assert not await ledger.store.change_cap(app, "u1", 5, payer_id="alice")
    assert await ledger.store.change_cap(app, "u1", 500, only_lower=True)
    assert await ledger.store.change_cap(app, "u1", 50, payer_id="bob", only_lower=True)
    assert not await ledger.store.change_cap(app, "u1", 5, epoch=1)
    assert await ledger.seen() == {"bob": (None, 50, None)}
    assert await ledger.store.revoke(app, "u1", payer_id="bob")
    assert not await ledger.store.revoke(app, "u1", payer_id="bob")
    with pytest.raises(WattfareNotConnectedError):
        await ledger.reserve("b1")


async def test_removed_funding_ends_everything_it_pays_for(ledger: Ledger) -> None:
    await ledger.fund("f1", "alice")
    await ledger.connect("alice", funding_id="f1")
    await ledger.store.connect(ledger.other, "u1", None, payer_id="bob")
    grant = GrantBudget(5, 100, TOMORROW, payer_id="alice", funding_id="f1")
    await ledger.store.add_grant(ledger.app, "g1", grant, OPERATOR)
    by_grant = {"user_id": None, "grant_hash": "g1"}
    assert await ledger.reserve("a1") == Granted(10, "f1")
    assert await ledger.reserve("g1", **by_grant) == Granted(10, "f1")
    assert await ledger.reserve("b1", app_id=ledger.other) == Granted(10)
    assert not await ledger.store.remove_funding("bob", "f1")
    assert (await ledger.store.renew()).revoked == frozenset()
    assert await ledger.store.remove_funding("alice", "f1")
    assert not await ledger.store.remove_funding("alice", "f1")
    assert (await ledger.store.renew()).revoked == {"a1", "g1"}
    assert (await ledger.seen())["alice"][2] == "removed"
    for more in ({}, by_grant):
        with pytest.raises(WattfareError) as refused:
            await ledger.reserve("late", **more)
        assert refused.value.http_status == 402
    table = schema.funding
    kept = await ledger.store.transact(lambda sql: sql.execute(select(table)).one())
    assert (kept.ciphertext, kept.encryption_key_id, kept.state) == (None, None, "removed")
    # A removed funding pays for nothing new.
    with pytest.raises(WattfareFundingError):
        await ledger.connect("alice", funding_id="f1")
    assert await ledger.settle("a1", 3) == 3
    assert await ledger.settle("g1", 3, **by_grant) == 3


@pytest.mark.parametrize("payer", ["", "bob"])
async def test_funding_pays_for_its_own_payer_only(ledger: Ledger, payer: str) -> None:
    await ledger.fund("f1", "alice")
    with pytest.raises(WattfareFundingError):
        await ledger.connect(payer, funding_id="f1")
    grant = GrantBudget(5, 100, TOMORROW, payer_id=payer, funding_id="f1")
    with pytest.raises(WattfareFundingError):
        await ledger.store.add_grant(ledger.app, "g1", grant, OPERATOR)


async def test_refused_funding_pays_for_no_new_call(ledger: Ledger) -> None:
    await ledger.fund("f1", "alice")
    await ledger.connect("alice", funding_id="f1")
    await ledger.reserve("a1")
    table = schema.funding
    await ledger.store.transact(lambda sql: sql.execute(update(table).values(state="invalid")))
    with pytest.raises(WattfareFundingError):
        await ledger.reserve("a2")
    with pytest.raises(WattfareFundingError):
        await ledger.store.check_account(ledger.app, "u1", None, OPERATOR)
    # A call in flight continues.
    assert (await ledger.store.renew()).revoked == frozenset()
    await ledger.settle("a1", 1)


async def test_operators_ceilings_apply_to_the_operators_money_only(ledger: Ledger) -> None:
    none = Terms(operator_pays=True, ceiling=0, app_ceiling=0, total_ceiling=0)
    await ledger.fund("f1", "alice")
    await ledger.connect("alice", funding_id="f1")
    assert await ledger.reserve("a1", terms=none) == Granted(10, "f1")
    await ledger.connect("alice")
    with pytest.raises(WattfareBudgetExceededError) as refused:
        await ledger.reserve("a2", terms=none)
    assert refused.value.limited_by == "ceiling"
    await ledger.settle("a1", 1)


async def test_calls_in_flight_count_towards_a_ceiling(ledger: Ledger) -> None:
    terms = Terms(operator_pays=True, total_ceiling=25)
    await ledger.connect("alice", None)
    await ledger.store.connect(ledger.other, "u1", None)
    await ledger.reserve("a1", 10, terms)
    await ledger.reserve("a2", 10, terms, app_id=ledger.other)
    with pytest.raises(WattfareRateLimitError) as refused:
        await ledger.reserve("a3", 10, terms)
    assert refused.value.limited_by == "in_flight"
    assert refused.value.remaining_usd is None  # it would reveal what others spend
    await ledger.settle("a1", 1)
    # A call that may be cut short takes what is left.
    call = InferenceCall(
        id="a4", app_id=ledger.app, user_id="u1", model="m", bounds=Bounds(1, 50), request_id="r"
    )
    assert await ledger.store.reserve(call, terms) == Granted(14)
    await ledger.settle("a4", 14)
    await ledger.settle("a2", 10, app_id=ledger.other)


@pytest.mark.parametrize(
    ("terms", "delta"),
    [
        (Terms(operator_pays=True, total_ceiling=200), 90),
        (Terms(operator_pays=True, total_ceiling=50), 30),
        (Terms(operator_pays=True, app_ceiling=40), 20),
        (Terms(operator_pays=True, ceiling=30, app_ceiling=400), 10),
    ],
)
async def test_correction_stays_within_each_ceiling(
    ledger: Ledger, terms: Terms, delta: int
) -> None:
    await ledger.connect("alice", None)
    await ledger.reserve("c1", 20, terms)
    await ledger.settle("c1", 20)
    call = InferenceCall(
        id="a1",
        app_id=ledger.app,
        user_id="u1",
        model="m",
        bounds=Bounds(5, 10).holding(90),
        request_id="r",
        stream=True,
    )
    before = Terms(operator_pays=True, total_ceiling=1000)
    await ledger.store.connect(ledger.app, "u1", 1000, payer_id="alice")
    await ledger.store.reserve(call, before)
    ledger.now += timedelta(seconds=LEASE_SECONDS + 1)
    await ledger.stores[1].renew()
    assert await ledger.stores[1].sweep() == 1
    account = Account(ledger.app, "u1")
    assert await ledger.store.correct("a1", account, done(90), terms) == delta


@pytest.mark.parametrize(("payer", "delta"), [("alice", 40), ("", 0)])
async def test_correction_bills_the_payer_of_the_call(
    ledger: Ledger, payer: str, delta: int
) -> None:
    """Another payer has taken over. The former payer's cap holds. Without a payer, the cap is
    unknown, and nothing more is billed."""
    await ledger.connect(payer, 40)
    call = InferenceCall(
        id="a1",
        app_id=ledger.app,
        user_id="u1",
        model="m",
        bounds=Bounds(5, 10).holding(90),
        request_id="r",
    )
    await ledger.store.reserve(call, OPERATOR)
    ledger.now += timedelta(seconds=LEASE_SECONDS + 1)
    await ledger.stores[1].renew()
    assert await ledger.stores[1].sweep() == 1
    await ledger.connect("bob", 1000)
    account = Account(ledger.app, "u1")
    assert await ledger.store.correct("a1", account, done(90), OPERATOR) == delta
    assert await ledger.totals() == Totals()


async def test_deleting_an_app_deletes_all_its_data(ledger: Ledger) -> None:
    await ledger.connect("alice")
    await ledger.store.add_grant(ledger.app, "g1", GrantBudget(5, 100, TOMORROW))
    await ledger.reserve("a1")
    await ledger.reserve("g1", user_id=None, grant_hash="g1")
    await ledger.store.revoke_app(ledger.app)
    assert (await ledger.store.renew()).revoked == {"a1", "g1"}
    assert (await ledger.seen())["alice"][2] == "revoked"
    await ledger.settle("a1", 1)
    await ledger.settle("g1", 1, user_id=None, grant_hash="g1")
