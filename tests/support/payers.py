"""Payers, created in the database without a passkey."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, update

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.databases import open_store
from wattfare_mw.service.ledger.store import Store


@dataclass(frozen=True)
class SignedIn:
    """A payer with a signed-in browser."""

    payer_id: str
    cookie: str


@asynccontextmanager
async def store_of(database: str) -> AsyncIterator[Store]:
    """A store of this process, in addition to those of the service."""
    store = await open_store(database)
    try:
        yield store
    finally:
        await store.close()


async def new_payer(store: Store, *, age: int = 0) -> SignedIn:
    """A payer who has signed in.

    Args:
        age: how many seconds ago.
    """
    payer_id, cookie = secrets.token_hex(16), secrets.token_urlsafe(32)
    now = int(time.time())
    await write(store, insert(schema.payers).values(id=payer_id, created_at=now))
    await write(
        store,
        insert(schema.sign_ins).values(
            token_hash=hashlib.sha256(cookie.encode()).hexdigest(),
            payer_id=payer_id,
            created_at=now - age,
            fresh_at=now - age,
            expires_at=now + 3600,
        ),
    )
    return SignedIn(payer_id, cookie)


async def grow_old(store: Store, payer: SignedIn) -> None:
    """Makes the payer's sign-ins older than ten minutes."""
    await write(
        store,
        update(schema.sign_ins)
        .where(schema.sign_ins.c.payer_id == payer.payer_id)
        .values(fresh_at=int(time.time()) - 700),
    )


async def write(store: Store, statement: Any) -> None:
    """Runs one statement."""
    await store.transact(lambda sql: sql.execute(statement).rowcount)
