"""A payer who deletes their data while another of their windows says Allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from support.payers import SignedIn, new_payer, store_of
from support.postgres import Cluster

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import payer_actions, schema
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import approval_store, approvals
from wattfare_mw.service.payers.approvals import Approval, Decision, Wish

ORIGIN = "https://app.example.com"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'wattfare.db'}"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.database()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with store_of(database) as opened:
        yield opened


@pytest.fixture
def app_id(database: str) -> str:
    return create_keys(database, "live app", "live").app_id


async def asked(store: Store, app_id: str) -> Approval:
    """A new approval."""
    wish = Wish(kind="grant", app_id=app_id, origin=ORIGIN, return_url=f"{ORIGIN}/", requests=1)
    approval = approvals.begin(wish, "secret", int(time.time()))
    await store.transact(lambda sql: approval_store.add(sql, approval, approval.created_at))
    return approval


async def allow(store: Store, approval: Approval, payer: SignedIn) -> None:
    decision = Decision(payer_id=payer.payer_id)
    now = approval.created_at
    await store.transact(lambda sql: approval_store.allow(sql, approval.id, decision, now))


async def delete(store: Store, payer: SignedIn) -> None:
    now = datetime.now(UTC)
    await store.transact(lambda sql: payer_actions.delete_data(sql, payer.payer_id, now))


async def state_of(store: Store, approval: Approval) -> str | None:
    table = schema.approvals
    query = select(table.c.state).where(table.c.id == approval.id)
    return await store.transact(lambda sql: sql.execute(query).scalar())


async def test_a_deleted_payer_allows_nothing(store: Store, app_id: str) -> None:
    """The form was sent, and its sign-in was looked up, before the data was deleted."""
    payer, approval = await new_payer(store), await asked(store, app_id)
    await delete(store, payer)
    with pytest.raises(WattfareError, match="deleted"):
        await allow(store, approval, payer)
    assert await state_of(store, approval) == "pending"


async def test_what_a_payer_has_just_allowed_is_deleted(store: Store, app_id: str) -> None:
    payer, approval = await new_payer(store), await asked(store, app_id)
    await allow(store, approval, payer)
    await delete(store, payer)
    assert await state_of(store, approval) is None


async def test_both_at_once(store: Store, app_id: str) -> None:
    """Whichever comes first, nothing is left that the payer has allowed."""
    for _ in range(10):
        payer, approval = await new_payer(store), await asked(store, app_id)
        allowed, deleted = await asyncio.gather(
            allow(store, approval, payer), delete(store, payer), return_exceptions=True
        )
        assert deleted is None
        assert allowed is None or getattr(allowed, "http_status", None) == 403, allowed
        assert await state_of(store, approval) in (None, "pending")
