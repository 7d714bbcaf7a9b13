"""A payer deletes their data while another of their windows sends Allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import select
from support.payers import SignedIn, new_payer, store_of

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import payer_actions, schema
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import approval_store, approvals, people, recovery_codes
from wattfare_mw.service.payers.approvals import Approval, ApprovalRequest, Decision
from wattfare_mw.service.records import Terms

ORIGIN = "https://app.example.com"


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
        await asyncio.gather(
            store.transact(sign_in), store.transact(new_codes), delete(store, payer)
        )


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
