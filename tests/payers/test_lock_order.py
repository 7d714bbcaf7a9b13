"""An app is deleted while another transaction holds locks that the deletion needs. If two
transactions wait for each other, PostgreSQL fails one of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import insert, select
from support.payers import SignedIn, new_payer, store_of, write
from support.postgres import Cluster, until_a_lock_is_awaited

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger import accounts, apps, payer_actions, schema
from wattfare_mw.service.ledger.clock import seconds, utc_now
from wattfare_mw.service.ledger.databases import change_database
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import approval_store, approvals
from wattfare_mw.service.payers.approvals import ApprovalRequest, Decision, Kind
from wattfare_mw.service.records import USERS_PAY, Terms

ORIGIN = "https://app.example.com"
GRANT = "g" * 64
Step = Callable[[Sql, "World"], object]


@dataclass
class World:
    """A payer with a connection, a grant and an allowed approval."""

    store: Store
    database: str
    app_id: str
    payer: SignedIn
    approval_id: str = ""
    code: str = ""

    async def allowed(self, kind: Kind) -> None:
        """An approval that the app can redeem."""
        user, requests = ("u2", None) if kind == "connection" else (None, 3)
        requested = ApprovalRequest(
            kind=kind,
            app_id=self.app_id,
            user_id=user,
            origin=ORIGIN,
            return_url=f"{ORIGIN}/",
            asked=10**9,
            requests=requests,
        )
        now = int(time.time())
        approval = approvals.begin(requested, "secret", now)
        decision = Decision(payer_id=self.payer.payer_id)

        def allow(sql: Sql) -> str:
            approval_store.add(sql, approval, now)
            return approval_store.allow(sql, approval.id, decision, now)[1]

        self.code, self.approval_id = await self.store.transact(allow), approval.id


@pytest.fixture
def database(cluster: Cluster) -> str:
    return cluster.database()


@pytest.fixture
async def world(database: str) -> AsyncIterator[World]:
    app_id = create_keys(database, "live app", "live").app_id
    async with store_of(database) as store:
        payer = await new_payer(store)
        await store.connect(app_id, "u1", None, payer_id=payer.payer_id)
        grant = {
            "token_hash": GRANT,
            "app_id": app_id,
            "requests_left": 3,
            "cap_nanos": 10**9,
            "expires_at": int(time.time()) + 3600,
            "billed_nanos": 0,
            "reserved_nanos": 0,
            "payer_id": payer.payer_id,
        }
        await write(store, insert(schema.grants).values(grant))
        yield World(store, database, app_id, payer)


def lock_approval(sql: Sql, world: World) -> None:
    assert approval_store.find(sql, world.approval_id, lock=True) is not None


def connect(sql: Sql, world: World) -> None:
    approval = approval_store.must_find(sql, world.approval_id, lock=True)
    approval_store.redeem(sql, approval, world.code, seconds(utc_now()))
    approval_store.connect(sql, approval, Terms(), utc_now())


def grant(sql: Sql, world: World) -> None:
    approval = approval_store.must_find(sql, world.approval_id, lock=True)
    approval_store.redeem(sql, approval, world.code, seconds(utc_now()))
    approval_store.grant(sql, approval, "token", Terms(), utc_now())


def lock_connection(sql: Sql, world: World) -> None:
    table = schema.connections
    sql.execute(select(table.c.user_id).where(table.c.user_id == "u1").with_for_update()).all()


def keep_key(sql: Sql, world: World) -> None:
    """Stores a key, as a call with an Idempotency-Key does."""
    row = {"payer": "u1", "key_hash": "k", "body_hash": "b", "reservation_id": "r"}
    sql.execute(insert(schema.idempotency).values(app_id=world.app_id, created_at=1, **row))


def lock_grant(sql: Sql, world: World) -> None:
    accounts.lock_rows(sql, schema.grants, schema.grants.c.token_hash == GRANT)


def stop_grant(sql: Sql, world: World) -> None:
    assert payer_actions.stop_grant(sql, world.payer.payer_id, GRANT, utc_now())


def delete_data(sql: Sql, world: World) -> None:
    payer_actions.delete_data(sql, world.payer.payer_id, utc_now())


@pytest.mark.parametrize(
    ("kind", "first", "then"),
    [
        ("connection", lock_approval, connect),
        ("grant", lock_approval, grant),
        ("connection", lock_connection, keep_key),
        ("connection", lock_grant, stop_grant),
        ("connection", lock_approval, delete_data),
    ],
)
async def test_app_deleted_during_a_redemption_causes_no_deadlock(
    world: World, kind: Kind, first: Step, then: Step
) -> None:
    await world.allowed(kind)
    with ThreadPoolExecutor(1) as thread:
        deletions: list[Future[int]] = []

        def job(sql: Sql) -> None:
            first(sql, world)
            deletions.append(
                thread.submit(
                    change_database,
                    world.database,
                    lambda other: apps.delete_app(other, world.app_id, utc_now()),
                )
            )
            until_a_lock_is_awaited(sql, deletions[0])
            then(sql, world)

        await world.store.transact(job)
        deletions[0].result()
    await nothing_is_connected(world)


async def nothing_is_connected(world: World) -> None:
    users, grants = schema.connections, schema.grants
    now = int(time.time())

    def look(sql: Sql) -> list[object]:
        return [
            *sql.execute(select(users.c.user_id).where(users.c.connected)),
            *sql.execute(
                select(grants).where(grants.c.expires_at > now, grants.c.requests_left > 0)
            ),
        ]

    assert await world.store.transact(look) == []


async def test_deleted_app_connects_nothing(world: World) -> None:
    """The request has looked the app up just before."""
    await world.allowed("connection")
    app = world.app_id
    await world.store.transact(
        lambda sql: (
            sql.execute(
                schema.apps.update().where(schema.apps.c.id == app).values(deleted_at=1)
            ).rowcount
        )
    )
    for job in (connect, lambda sql, _: accounts.connect(sql, app, "u3", None, None, utc_now())):
        with pytest.raises(WattfareError, match="The app is deleted") as raised:
            await world.store.transact(lambda sql, job=job: job(sql, world))
        assert raised.value.http_status == 409
    budget = await world.store.transact(lambda sql: accounts.grant(sql, app, GRANT))
    assert budget is not None
    with pytest.raises(WattfareError, match="The app is deleted"):
        await world.store.add_grant(app, secrets.token_hex(32), budget, USERS_PAY, 1)
