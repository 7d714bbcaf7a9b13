"""Payers who never pay are deleted a month after their last sign-in, in small batches."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import Table, insert, select, text
from support.payers import store_of, write
from support.service import run_service

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import payer_actions, schema
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import people, unused
from wattfare_mw.service.payers.passkeys import Passkey

DAY = 86_400
NOW = int(time.time())
OLD = NOW - 31 * DAY


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with store_of(database) as opened:
        yield opened


@pytest.fixture
def app_id(database: str) -> str:
    return create_keys(database, "live app", "live").app_id


async def visitor(store: Store, *, at: int = OLD) -> str:
    """A payer who creates a passkey and signs in now."""
    payer_id = secrets.token_hex(16)

    def make(sql: Sql) -> None:
        people.add_passkey(sql, Passkey(f"passkey of {payer_id}", payer_id, b"key", 0), at)
        people.replace_codes(sql, payer_id, ["one", "two"])
        people.begin_sign_in(sql, payer_id, None, at)

    await store.transact(make)
    return payer_id


async def sweep(store: Store, after: str = "", now: int = NOW) -> str | None:
    return await store.transact(lambda sql: unused.sweep(sql, after, now))


async def is_there(store: Store, payer_id: str) -> bool:
    table = schema.payers
    query = select(table.c.id).where(table.c.id == payer_id)
    return await store.transact(lambda sql: sql.execute(query).first()) is not None


async def add(store: Store, table: Table, **row: Any) -> None:
    await write(store, insert(table).values(**row))


async def test_payer_who_never_paid_is_deleted(store: Store) -> None:
    gone, young = await visitor(store), await visitor(store, at=NOW - 29 * DAY)
    await add(
        store,
        schema.challenges,
        id_hash="c",
        kind="create",
        challenge=b"c",
        payer_id=gone,
        expires_at=1,
    )
    assert await sweep(store) is None
    assert not await is_there(store, gone)
    assert await is_there(store, young)
    for table in schema.metadata.sorted_tables:
        if "payer_id" in table.c:
            query = select(table).where(table.c.payer_id == gone)
            assert await store.transact(lambda sql, query=query: sql.execute(query).all()) == []


Row = Callable[[str, str], tuple[Table, dict[str, Any]]]


def paid_connection(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    return schema.connections, {
        "app_id": app_id,
        "user_id": "u1",
        "connected": True,
        "changed_at": 1,
        "payer_id": payer_id,
    }


def ended_connection(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    row = {"app_id": app_id, "user_id": "u1", "connected_at": 1, "ended_at": 2, "ended": "revoked"}
    return schema.payer_connections, {**row, "payer_id": payer_id}


def kept_grant(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    row = {"token_hash": "t", "app_id": app_id, "requests_left": 0, "cap_nanos": 1}
    totals = {"expires_at": 1, "billed_nanos": 0, "reserved_nanos": 0}
    return schema.grants, {**row, **totals, "payer_id": payer_id}


def funding(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    row = {"id": "f", "kind": "key", "upstream": "u", "label": "", "state": "removed"}
    return schema.funding, {**row, "created_at": 1, "checked_at": 1, "payer_id": payer_id}


def ledger_row(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    row = {"reservation_id": "r", "reserved_at": 1, "settled_at": 1, "app_id": app_id}
    tokens = {"prompt_tokens": 1, "completion_tokens": 1, "reserved_nanos": 1, "billed_nanos": 1}
    names = {"user_id": "u1", "month": "2020-01", "model": "m", "ended": "completed"}
    return schema.ledger, {**row, **tokens, **names, "request_id": "r", "payer_id": payer_id}


def allowed_approval(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    row = {"id": "a", "kind": "connection", "app_id": app_id, "epoch": 0, "origin": "o"}
    texts = {"return_url": "r", "secret_hash": "s", "state": "approved"}
    flags = {"asked_unlimited": False, "unlimited": False, "created_at": NOW, "expires_at": NOW + 9}
    return schema.approvals, {**row, **texts, **flags, "payer_id": payer_id}


def live_sign_in(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    times = {"created_at": OLD, "fresh_at": OLD, "expires_at": NOW + 9}
    return schema.sign_ins, {"token_hash": "t", **times, "payer_id": payer_id}


def used_code(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    return schema.recovery_codes, {"payer_id": payer_id, "code_hash": "h", "used_at": NOW - DAY}


def used_passkey(payer_id: str, app_id: str) -> tuple[Table, dict[str, Any]]:
    times = {"created_at": OLD, "last_used_at": NOW - DAY}
    row = {"credential_id": "other", "public_key": b"k", "sign_count": 0}
    return schema.passkeys, {**row, **times, "payer_id": payer_id}


@pytest.mark.parametrize(
    "kept",
    [
        paid_connection,
        ended_connection,
        kept_grant,
        funding,
        ledger_row,
        allowed_approval,
        live_sign_in,
        used_code,
        used_passkey,
    ],
)
async def test_payer_with_any_data_is_kept(store: Store, app_id: str, kept: Row) -> None:
    payer_id, gone = await visitor(store), await visitor(store)
    table, row = kept(payer_id, app_id)
    await add(store, table, **row)
    await sweep(store)
    assert await is_there(store, payer_id)
    assert not await is_there(store, gone)


async def test_payer_whose_data_was_deleted_is_kept(store: Store) -> None:
    payer_id = await visitor(store)
    await store.transact(lambda sql: payer_actions.delete_data(sql, payer_id, utc_now()))
    await sweep(store)
    assert await is_there(store, payer_id)


async def test_payers_are_deleted_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "AT_A_TIME", 2)
    ids = sorted([await visitor(store) for _ in range(5)])
    assert await sweep(store) == ids[1]
    assert [await is_there(store, each) for each in ids] == [False, False, True, True, True]
    assert await sweep(store, ids[1]) == ids[3]
    assert await sweep(store, ids[3]) is None
    assert not any([await is_there(store, each) for each in ids])
    assert await sweep(store) is None


async def test_concurrent_sign_in_and_sweep(store: Store) -> None:
    """Either the payer signs in and stays, or the passkey is unknown."""
    for number in range(20):
        payer_id = await visitor(store)
        passkey = Passkey(f"passkey of {payer_id}", payer_id, b"key", 0)

        def prove(sql: Sql, number: int = number, passkey: Passkey = passkey) -> None:
            if number % 2:
                people.note_use(sql, passkey, passkey, NOW)
            else:
                assert people.use_code(sql, passkey.credential_id, NOW)

        def begin(sql: Sql, payer_id: str = payer_id) -> None:
            people.begin_sign_in(sql, payer_id, None, NOW)

        async def sign_in(payer_id: str = payer_id) -> bool:
            try:
                await store.transact(prove)
            except (WattfareError, AssertionError):
                return False
            await store.transact(begin)
            return True

        codes = [passkey.credential_id]
        await store.transact(
            lambda sql, id_=payer_id, codes=codes: people.replace_codes(sql, id_, codes)
        )
        signed_in, _ = await asyncio.gather(sign_in(), sweep(store))
        assert await is_there(store, payer_id) == signed_in


async def test_sweep_uses_an_index(store: Store) -> None:
    """With any number of payers and rows, the sweep reads only the rows of a few payers."""

    def plan(sql: Sql) -> str:
        payers = schema.payers
        query = unused.unused(NOW).where(payers.c.id > "a", payers.c.id <= "b")
        compiled = query.compile(sql.engine, compile_kwargs={"literal_binds": True})
        if sql.dialect.name == "sqlite":
            return "\n".join(
                row.detail for row in sql.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))
            )
        sql.execute(text("SET LOCAL enable_seqscan = off"))
        return "\n".join(row[0] for row in sql.execute(text(f"EXPLAIN {compiled}")))

    found = await store.transact(plan)
    assert "SCAN" not in found, found
    assert "Seq Scan" not in found, found


async def test_service_sweeps_unused_payers(tmp_path: Path) -> None:
    async with store_of(f"sqlite:///{tmp_path / 'wattfare.db'}") as store:
        payer_id, young = await visitor(store), await visitor(store, at=NOW)
        with run_service(tmp_path) as service:
            assert service.database.endswith("/wattfare.db")
            async with asyncio.timeout(30):
                while await is_there(store, payer_id):
                    await asyncio.sleep(0.02)
            assert await is_there(store, young)


async def test_swept_passkey_is_unknown(store: Store) -> None:
    payer_id = await visitor(store)
    before = Passkey(f"passkey of {payer_id}", payer_id, b"key", 0)
    await sweep(store)
    with pytest.raises(WattfareError) as raised:
        await store.transact(lambda sql: people.note_use(sql, before, before, NOW))
    assert raised.value.http_status == 403
