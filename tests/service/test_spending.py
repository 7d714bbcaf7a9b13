"""What a payer sees and changes in the ledger, on both kinds of database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from support.payers import new_payer, store_of, write

from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import payer_actions, schema, spending
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.ledger.rules import month_of
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.records import App

USD = 10**9
NOW = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with store_of(database) as store:
        yield store


@pytest.fixture
async def app(store: Store) -> App:
    app, _ = new_app("An app", "live")
    await store.add_app(app)
    return app


@pytest.fixture
async def ada(store: Store) -> str:
    return (await new_payer(store)).payer_id


@pytest.fixture
async def bob(store: Store) -> str:
    return (await new_payer(store)).payer_id


def row_of(app: App, payer_id: str, settled_at: int, **columns: Any) -> dict[str, Any]:
    """A row of the ledger."""
    return {
        "reservation_id": secrets.token_hex(16),
        "reserved_at": settled_at,
        "settled_at": settled_at,
        "app_id": app.id,
        "user_id": "u1",
        "payer_id": payer_id,
        "month": "2026-11",
        "model": "m",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "reserved_nanos": 10,
        "billed_nanos": 5,
        "ended": "completed",
        "request_id": "r",
        **columns,
    }


async def connections(store: Store, payer_id: str, now: datetime = NOW) -> list[Any]:
    return await store.transact(
        lambda sql: [
            one
            for ended in (False, True)
            for one in spending.connections(sql, payer_id, now, ended=ended, limit=99)
        ]
    )


async def test_pages_of_calls_have_each_row_once(
    store: Store, app: App, ada: str, bob: str
) -> None:
    rows = [row_of(app, ada, 1000 + n // 7, model=f"m{n}") for n in range(50)]
    rows += [row_of(app, bob, 1000 + n // 7) for n in range(50)]
    await write(store, insert(schema.ledger).values(rows))
    for size in (1, 7, 13, 49, 50, 51):
        assert await pages_of_calls(store, ada, size) == [f"m{n}" for n in reversed(range(50))]


async def test_pages_of_the_calls_of_one_connection(
    store: Store, app: App, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are complete, although each page reads only some calls."""
    rows = [row_of(app, ada, 1000 + n // 7, model=f"m{n}", user_id=f"u{n % 5}") for n in range(60)]
    await write(store, insert(schema.ledger).values(rows))
    wanted = [f"m{n}" for n in reversed(range(60)) if n % 5 == 2]
    for looked_at in (1, 7, 59, 60, 61):
        monkeypatch.setattr(spending, "LOOKED_AT", looked_at)
        for size in (1, 3, 12, 50):
            assert await pages_of_calls(store, ada, size, account=(app.id, "u2")) == wanted
    assert await pages_of_calls(store, ada, 9, account=(app.id, "nobody")) == []


async def pages_of_calls(store: Store, payer_id: str, size: int, **options: Any) -> list[str]:
    """The models of all calls, read in pages."""
    seen: list[str] = []
    before = None
    while True:
        page, before = await store.transact(
            lambda sql, at=before: spending.calls(sql, payer_id, size, before=at, **options)
        )
        assert len(page) <= size
        seen += [call.model for call in page]
        if before is None:
            return seen


async def test_export_has_each_row_once(
    store: Store, app: App, ada: str, bob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "EXPORT_PAGE", 4)
    rows = [row_of(app, ada, 1000 + n // 7, model=f"m{n}") for n in range(30)]
    rows += [row_of(app, bob, 1000 + n // 7) for n in range(30)]
    await write(store, insert(schema.ledger).values(rows))
    seen: list[str] = []
    after = (0, 0)
    while page := await store.transact(lambda sql, at=after: spending.export(sql, ada, at)):
        assert len(page) <= 4
        seen += [call.model for call in page]
        after = (page[-1].settled_at, page[-1].id)
    assert seen == [f"m{n}" for n in range(30)]


async def test_connection_shows_the_totals_of_its_payer_and_month(
    store: Store, app: App, ada: str, bob: str
) -> None:
    await store.connect(app.id, "u1", 5 * USD, payer_id=ada, label="ada")
    amounts = {(ada, "2026-11"): 1, (ada, "2026-10"): 2, (bob, "2026-11"): 4, ("", "2026-11"): 8}
    for (payer_id, month), nanos in amounts.items():
        await write(
            store,
            insert(schema.totals).values(
                app_id=app.id,
                user_id="u1",
                payer_id=payer_id,
                month=month,
                billed_nanos=nanos,
                reserved_nanos=0,
            ),
        )
    (one,) = await connections(store, ada)
    assert (one.app_name, one.is_test, one.label) == ("An app", False, "ada")
    assert (one.cap, one.billed, one.ended_at, one.funding_id) == (5 * USD, 1, None, None)
    (one,) = await connections(store, ada, NOW + timedelta(seconds=1))
    assert one.billed == 0
    assert await connections(store, bob) == []
    assert await connections(store, "") == []


async def test_connection_shows_the_funding_label_of_its_payer(
    store: Store, app: App, ada: str, bob: str
) -> None:
    for payer_id, name in ((ada, "of ada"), (bob, "of bob")):
        await write(store, insert(schema.funding).values(funding_of(payer_id, name)))
    await store.connect(app.id, "u1", None, payer_id=ada)
    for name, label in (("of ada", "of ada"), ("of bob", None)):
        await write(store, update(schema.connections).values(funding_id=name))
        (one,) = await connections(store, ada)
        assert one.funding == label


def funding_of(payer_id: str, name: str) -> dict[str, Any]:
    """A row of funding with this label."""
    return {
        "id": name,
        "payer_id": payer_id,
        "kind": "key",
        "upstream": "u",
        "label": name,
        "ciphertext": b"secret",
        "encryption_key_id": "1",
        "state": "valid",
        "checked_at": 1,
        "created_at": 1,
    }


@pytest.mark.parametrize(
    ("before", "after", "lowers"),
    [
        (5, 4, True),
        (5, 5, True),
        (5, 6, False),
        (5, None, False),
        (None, 6, True),
        (None, None, True),
        (0, 0, True),
        (0, 1, False),
    ],
)
async def test_raising_a_cap_needs_a_recent_sign_in(
    store: Store, app: App, ada: str, before: int | None, after: int | None, lowers: bool
) -> None:
    await store.connect(app.id, "u1", before, payer_id=ada)
    assert await change(store, ada, app, after, may_raise=False) == (
        "changed" if lowers else "needs_sign_in"
    )
    assert await caps(store) == ([after, after] if lowers else [before, before])
    assert await change(store, ada, app, after, may_raise=True) == "changed"
    assert await caps(store) == [after, after]


async def change(store: Store, payer_id: str, app: App, cap: int | None, *, may_raise: bool) -> str:
    return await store.at(
        lambda sql, now: payer_actions.change_connection(
            sql, payer_id, app.id, "u1", cap, now, is_fresh=may_raise
        )
    )


async def caps(store: Store) -> list[int | None]:
    """The cap in force, and the cap that the payer sees."""
    tables = (schema.connections, schema.payer_connections)
    return await store.transact(
        lambda sql: [sql.execute(select(table.c.cap_nanos)).scalar_one() for table in tables]
    )


async def test_payer_changes_and_stops_only_their_own_connection(
    store: Store, app: App, ada: str, bob: str
) -> None:
    await store.connect(app.id, "u1", USD, payer_id=ada)
    assert await change(store, bob, app, 0, may_raise=True) == "ended"
    assert not await stop(store, bob, app)
    assert await caps(store) == [USD, USD]
    assert await stop(store, ada, app)
    assert not await stop(store, ada, app)
    assert await change(store, ada, app, 0, may_raise=True) == "ended"
    (one,) = await connections(store, ada)
    assert one.ended == "revoked"
    connection, _ = await store.account(app.id, "u1")
    assert connection is not None
    assert (connection.connected, connection.revocations) == (False, 1)


async def stop(store: Store, payer_id: str, app: App) -> bool:
    return await store.revoke(app.id, "u1", payer_id=payer_id)


async def test_stopped_grant_of_the_operator_counts_until_it_expires(
    store: Store, app: App, ada: str, bob: str
) -> None:
    """Otherwise a person could spend a grant, stop it and get the next, beyond the ceiling."""
    expires_at = int(utc_now().timestamp()) + 3600
    for name, funding_id in (("a" * 64, None), ("b" * 64, "own")):
        await write(
            store,
            insert(schema.grants).values(
                token_hash=name,
                app_id=app.id,
                requests_left=2,
                cap_nanos=USD,
                expires_at=expires_at,
                billed_nanos=USD // 2,
                reserved_nanos=0,
                payer_id=ada,
                funding_id=funding_id,
            ),
        )
    for payer_id, name, stopped in (
        (bob, "a", False),
        (ada, "a", True),
        (ada, "a", False),
        (ada, "b", True),
    ):
        done = await store.at(
            lambda sql, now, payer_id=payer_id, name=name: payer_actions.stop_grant(
                sql, payer_id, name * 64, now
            )
        )
        assert done is stopped
    assert await store.at(lambda sql, now: spending.grants(sql, ada, now, 9)) == []
    table = schema.grants
    held = await store.transact(
        lambda sql: sql.execute(
            select(table.c.cap_nanos, table.c.requests_left, table.c.payer_id).where(
                table.c.expires_at == expires_at
            )
        ).all()
    )
    assert [tuple(row) for row in held] == [(USD, 0, "")]


async def test_deleted_data_leaves_no_reference(store: Store, app: App, ada: str, bob: str) -> None:
    await store.connect(app.id, "u1", USD, payer_id=ada, label="ada")
    await store.connect(app.id, "u2", USD, payer_id=bob, label="bob")
    for payer_id, name in ((ada, "of ada"), (bob, "of bob")):
        await write(store, insert(schema.funding).values(funding_of(payer_id, name)))
    await write(store, insert(schema.ledger).values(row_of(app, ada, 1000)))
    stopped = await store.at(lambda sql, now: payer_actions.delete_data(sql, ada, now))
    assert stopped.accounts == {(app.id, "u1")}
    assert stopped.grants == frozenset()
    assert await connections(store, ada) == []
    calls, _ = await store.transact(lambda sql: spending.calls(sql, ada, 9))
    assert len(calls) == 1
    funding = await store.transact(
        lambda sql: sql.execute(select(schema.funding).order_by("id")).mappings().all()
    )
    assert [row["ciphertext"] for row in funding] == [None, b"secret"]
    (one,) = await connections(store, bob)
    assert (one.label, one.ended_at) == ("bob", None)
    again = await store.at(lambda sql, now: payer_actions.delete_data(sql, ada, now))
    assert (again.accounts, again.grants) == (frozenset(), frozenset())


async def test_month_comes_from_the_clock_of_the_database(store: Store) -> None:
    assert await store.at(lambda _, now: month_of(now)) in (
        month_of(utc_now()),
        month_of(utc_now() - timedelta(minutes=1)),
    )
