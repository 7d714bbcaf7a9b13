"""A payer deletes their data while another of their windows sends Allow, or stores something."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import insert, select
from support.payers import SignedIn, new_payer, store_of
from support.postgres import until_a_lock_is_awaited

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import fundings, payer_actions, schema
from wattfare_mw.service.ledger.databases import change_database
from wattfare_mw.service.ledger.fundings import Funding, FundingRequest, StoredKey
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import (
    approval_store,
    approvals,
    passkeys,
    people,
    recovery_codes,
)
from wattfare_mw.service.payers.approvals import Approval, ApprovalRequest, Decision
from wattfare_mw.service.payers.passkeys import Passkey
from wattfare_mw.service.records import Terms

ORIGIN = "https://app.example.com"
Job = Callable[[Sql], object]


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with store_of(database) as opened:
        yield opened


@pytest.fixture
def app_id(database: str) -> str:
    return create_keys(database, "live app", "live").app_id


async def new_approval(store: Store, app_id: str, user_id: str = "u1") -> Approval:
    """Opens a new approval."""
    requested = ApprovalRequest(
        kind="connection",
        app_id=app_id,
        user_id=user_id,
        origin=ORIGIN,
        return_url=f"{ORIGIN}/",
    )
    approval = approvals.begin(requested, "secret", int(time.time()))
    await store.transact(lambda sql: approval_store.add(sql, approval, approval.created_at))
    return approval


async def allow(
    store: Store, approval: Approval, payer: SignedIn, replaces: str | None = None
) -> None:
    decision = Decision(payer_id=payer.payer_id, replaces=replaces)
    now = approval.created_at
    await store.transact(lambda sql: approval_store.allow(sql, approval.id, decision, now))


async def delete(store: Store, payer: SignedIn) -> None:
    now = datetime.now(UTC)
    await store.transact(lambda sql: payer_actions.delete_data(sql, payer.payer_id, now))


async def state_of(store: Store, approval: Approval) -> str | None:
    table = schema.approvals
    query = select(table.c.state).where(table.c.id == approval.id)
    return await store.transact(lambda sql: sql.execute(query).scalar())


async def test_deleted_payer_allows_nothing(store: Store, app_id: str) -> None:
    """The form was sent, and its sign-in was checked, before the data was deleted."""
    payer, approval = await new_payer(store), await new_approval(store, app_id)
    await delete(store, payer)
    with pytest.raises(WattfareError, match="deleted"):
        await allow(store, approval, payer)
    assert await state_of(store, approval) == "pending"


async def test_fresh_approval_is_deleted_with_its_payer(store: Store, app_id: str) -> None:
    payer, approval = await new_payer(store), await new_approval(store, app_id)
    await allow(store, approval, payer)
    await delete(store, payer)
    assert await state_of(store, approval) is None


async def test_approval_of_another_payer_forgets_the_deleted_payer(
    store: Store, app_id: str
) -> None:
    """Its row has the label of an account. Nothing may link a label to a deleted payer."""
    deleted, other = await new_payer(store), await new_payer(store)
    approval = await new_approval(store, app_id)
    await allow(store, approval, other, replaces=deleted.payer_id)
    await delete(store, deleted)
    found = await store.transact(lambda sql: approval_store.must_find(sql, approval.id))
    assert (found.state, found.payer_id, found.replaces) == ("approved", other.payer_id, None)


async def test_concurrent_redemption_and_deletion(store: Store, app_id: str) -> None:
    """Both end, in any order, without a deadlock. No connection is left."""
    terms, now = Terms(), datetime.now(UTC)
    for number in range(20):
        payer, approval = await new_payer(store), await new_approval(store, app_id, f"u{number}")
        await allow(store, approval, payer)

        def redeem(sql: Sql, id_: str = approval.id) -> None:
            found = approval_store.must_find(sql, id_, lock=True)
            approval_store.connect(sql, found, terms, now)

        redeemed, deleted = await asyncio.gather(
            store.transact(redeem), delete(store, payer), return_exceptions=True
        )
        assert deleted is None
        assert redeemed is None or getattr(redeemed, "http_status", None) == 404, redeemed
        table = schema.connections
        query = select(table.c.user_id).where(table.c.payer_id == payer.payer_id, table.c.connected)
        assert await store.transact(lambda sql, query=query: sql.execute(query).all()) == []


async def test_concurrent_sign_in_and_deletion(store: Store) -> None:
    """Both end. A new sign-in replaces the former one and names its payer."""
    for _ in range(20):
        payer = await new_payer(store)
        id_, cookie, now = payer.payer_id, payer.cookie, int(time.time())
        codes = recovery_codes.new_codes()

        def sign_in(sql: Sql, id_: str = id_, cookie: str = cookie, now: int = now) -> None:
            people.begin_sign_in(sql, id_, cookie, now)

        def new_codes(sql: Sql, id_: str = id_, codes: list[str] = codes) -> None:
            people.replace_codes(sql, id_, codes)

        await store.transact(new_codes)
        *added, deleted = await asyncio.gather(
            store.transact(sign_in),
            store.transact(new_codes),
            delete(store, payer),
            return_exceptions=True,
        )
        assert deleted is None
        for each in added:
            assert not isinstance(each, BaseException) or getattr(each, "http_status", 0) == 403


async def test_concurrent_approval_and_deletion(store: Store, app_id: str) -> None:
    """In any order, no approval of the payer is left."""
    for _ in range(10):
        payer, approval = await new_payer(store), await new_approval(store, app_id)
        allowed, deleted = await asyncio.gather(
            allow(store, approval, payer), delete(store, payer), return_exceptions=True
        )
        assert deleted is None
        assert allowed is None or getattr(allowed, "http_status", None) == 403, allowed
        assert await state_of(store, approval) in (None, "pending")


# -- what another window of the payer stores meanwhile


def an_approval(sql: Sql, payer_id: str, approval_id: str) -> None:
    now = int(time.time())
    approval_store.allow(sql, approval_id, Decision(payer_id=payer_id), now)


def a_sign_in(sql: Sql, payer_id: str, _: str) -> None:
    people.begin_sign_in(sql, payer_id, None, int(time.time()))


def recovery_codes_(sql: Sql, payer_id: str, _: str) -> None:
    people.replace_codes(sql, payer_id, recovery_codes.new_codes())


def a_passkey(sql: Sql, payer_id: str, _: str) -> None:
    people.add_passkey(sql, Passkey(secrets.token_hex(8), payer_id, b"key", 0), int(time.time()))


def a_challenge(sql: Sql, payer_id: str, _: str) -> None:
    challenge = passkeys.new_challenge("create", payer_id)
    people.keep_challenge(sql, people.new_challenge_id(), challenge, int(time.time()))


def a_key(sql: Sql, payer_id: str, _: str) -> None:
    id_, now = secrets.token_hex(16), int(time.time())
    funding = Funding(id_, payer_id, "key", "https://up.example", "my key", "valid", None, now)
    fundings.add(sql, funding, StoredKey(id_, funding.upstream, b"sealed", "k1"))


def a_request_for_a_key(sql: Sql, payer_id: str, _: str) -> None:
    now = int(time.time())
    hashes = secrets.token_hex(32), payer_id, secrets.token_hex(32)
    request = FundingRequest(*hashes, b"verifier", None, "/funding", now + 600)
    fundings.add_request(sql, request, now)


def an_approval_that_replaces(sql: Sql, payer_id: str, approval_id: str) -> None:
    other = secrets.token_hex(16)
    sql.execute(insert(schema.payers).values(id=other, created_at=1))
    decision = Decision(payer_id=other, replaces=payer_id)
    approval_store.allow(sql, approval_id, decision, int(time.time()))


def left_of(sql: Sql, payer_id: str) -> list[Any]:
    """What is stored for a deleted payer in addition to the ledger and its totals."""
    funding = schema.funding
    kept = {schema.connections, schema.grants, schema.ledger, schema.reservations, schema.totals}
    names = [
        column
        for table in schema.metadata.sorted_tables
        for column in table.c
        if column.name in ("payer_id", "replaces") and table not in {*kept, funding}
    ]
    assert len(names) == 8, names
    found = [
        row for name in names for row in sql.execute(select(name.table).where(name == payer_id))
    ]
    mine = select(funding.c.label, funding.c.ciphertext).where(funding.c.payer_id == payer_id)
    return found + [row for row in sql.execute(mine) if tuple(row) != ("", None)]


def begun_during(database: str, first: Job, second: Job) -> BaseException | None:
    """The error of the second of two transactions, which begins while the first one is open and
    waits for a lock of the first one."""
    with ThreadPoolExecutor(1) as thread:

        def run(sql: Sql) -> Future[Any]:
            first(sql)
            begun = thread.submit(change_database, database, second)
            if sql.dialect.name == "postgresql":
                until_a_lock_is_awaited(sql, begun)
            return begun

        return change_database(database, run).exception()


@pytest.mark.parametrize(
    "add",
    [
        an_approval,
        an_approval_that_replaces,
        a_sign_in,
        recovery_codes_,
        a_passkey,
        a_challenge,
        a_key,
        a_request_for_a_key,
    ],
)
async def test_nothing_is_left_of_a_deleted_payer(
    store: Store, database: str, app_id: str, add: Callable[[Sql, str, str], None]
) -> None:
    """Each transaction begins while the other one is open. SQLite runs them one after the other."""
    for deletion_is_first in (True, False):
        payer, approval = await new_payer(store), await new_approval(store, app_id)

        def store_it(sql: Sql, payer: SignedIn = payer, approval: Approval = approval) -> None:
            add(sql, payer.payer_id, approval.id)

        def delete_all(sql: Sql, payer: SignedIn = payer) -> None:
            payer_actions.delete_data(sql, payer.payer_id, datetime.now(UTC))

        jobs = (delete_all, store_it) if deletion_is_first else (store_it, delete_all)
        error = await asyncio.to_thread(begun_during, database, *jobs)
        refused = deletion_is_first and add is not an_approval_that_replaces
        assert getattr(error, "http_status", None) == (403 if refused else None), error
        assert await store.transact(lambda sql, id_=payer.payer_id: left_of(sql, id_)) == []
