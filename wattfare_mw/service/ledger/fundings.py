"""The funding of payers, in SQL.

Each function runs inside the transaction of its connection. Keys are stored encrypted.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import delete, func, insert, select, update

from . import accounts, schema
from .clock import seconds

FundingKind = Literal["openrouter", "key"]

#: The maximum number of a payer's funding rows.
MAX_FUNDING = 20


class Funding(msgspec.Struct, frozen=True):
    """A payer's funding.

    Attributes:
        upstream: the base URL of the key. The key is sent only to this URL.
        label: a name for the payer to read.
        limit: the key's limit at the provider, in nano-dollars, at the time when the key was
            connected. None if there is no limit, or if it is unknown.
        created_at: Unix seconds.
    """

    id: str
    payer_id: str
    kind: FundingKind
    upstream: str
    label: str
    state: Literal["valid", "invalid"]
    limit: int | None
    created_at: int


class StoredKey(msgspec.Struct, frozen=True):
    """The encrypted key of a funding."""

    id: str
    upstream: str
    ciphertext: bytes
    encryption_key_id: str


class FundingRequest(msgspec.Struct, frozen=True):
    """A request for a key from OpenRouter, whose payer has not returned from OpenRouter yet.

    Attributes:
        state_hash: the hash of the ``state`` in the callback's URL.
        cookie_hash: the hash of the cookie of the payer's browser.
        verifier: the PKCE verifier, encrypted.
        limit: the requested limit, in nano-dollars; None for no limit.
        return_to: the page of the service to show afterwards.
        expires_at: Unix seconds.
    """

    state_hash: str
    payer_id: str
    cookie_hash: str
    verifier: bytes
    limit: int | None
    return_to: str
    expires_at: int


def of_payer(sql: Sql, payer_id: str) -> list[Funding]:
    """This payer's funding, the oldest first."""
    table = schema.funding
    rows = sql.execute(
        select(*_COLUMNS)
        .where(table.c.payer_id == payer_id, table.c.state != "removed")
        .order_by(table.c.created_at, table.c.id)
    )
    return [Funding(*row) for row in rows]


def find(sql: Sql, payer_id: str, funding_id: str) -> Funding | None:
    """This funding, if it is the payer's and has not been removed."""
    table = schema.funding
    row = sql.execute(
        select(*_COLUMNS).where(
            table.c.id == funding_id, table.c.payer_id == payer_id, table.c.state != "removed"
        )
    ).first()
    return None if row is None else Funding(*row)


def add(sql: Sql, funding: Funding, key: StoredKey, replaces: Collection[str] = ()) -> bool:
    """Store a new funding. Returns False and changes nothing if the payer has too many.

    Args:
        replaces: the ids of the same payer's funding to replace. The new funding pays instead, and
            their keys are deleted. Calls in flight continue.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer's data was deleted.
    """
    table = schema.funding
    mine = table.c.payer_id == funding.payer_id
    # One at a time, so that two concurrent requests cannot exceed the maximum.
    accounts.check_payer(sql, funding.payer_id, alone=True)
    count = sql.execute(
        select(func.count())
        .select_from(table)
        .where(mine, table.c.state != "removed", table.c.id.not_in(replaces))
    ).scalar_one()
    if count >= MAX_FUNDING:
        return False
    sql.execute(
        insert(table).values(
            id=funding.id,
            payer_id=funding.payer_id,
            kind=funding.kind,
            upstream=funding.upstream,
            label=funding.label,
            ciphertext=key.ciphertext,
            encryption_key_id=key.encryption_key_id,
            state=funding.state,
            limit_nanos=funding.limit,
            created_at=funding.created_at,
            checked_at=funding.created_at,
        )
    )
    if replaces:
        # Lock the funding first. A concurrent new connection waits for this lock, or is found
        # below.
        sql.execute(
            update(table)
            .where(mine, table.c.id.in_(replaces))
            .values(ciphertext=None, encryption_key_id=None, state="removed")
        )
        for paid in (schema.connections, schema.grants):
            sql.execute(
                update(paid)
                .where(paid.c.payer_id == funding.payer_id, paid.c.funding_id.in_(replaces))
                .values(funding_id=funding.id)
            )
    return True


def invalid_of(sql: Sql, payer_id: str, kind: FundingKind, upstream: str) -> list[str]:
    """The ids of this payer's funding of this kind that the provider has refused."""
    table = schema.funding
    return list(
        sql.execute(
            select(table.c.id).where(
                table.c.payer_id == payer_id,
                table.c.kind == kind,
                table.c.upstream == upstream,
                table.c.state == "invalid",
            )
        ).scalars()
    )


def stored_key(sql: Sql, funding_id: str) -> StoredKey | None:
    """The encrypted key of this funding; None if it has been removed, or refused."""
    table = schema.funding
    row = sql.execute(
        select(*_STORED).where(
            table.c.id == funding_id, table.c.state == "valid", table.c.ciphertext.is_not(None)
        )
    ).first()
    return None if row is None else StoredKey(*row)


def mark_invalid(sql: Sql, funding_id: str, now: datetime) -> bool:
    """Record that the provider has refused this key. Returns False if this was already recorded."""
    table = schema.funding
    marked = sql.execute(
        update(table)
        .where(table.c.id == funding_id, table.c.state == "valid")
        .values(state="invalid", checked_at=seconds(now))
    )
    return marked.rowcount > 0


def encrypted_by_others(sql: Sql, key_id: str, after: str, most: int) -> list[StoredKey]:
    """Up to ``most`` stored keys that are encrypted with another encryption key, in the order of
    their ids.

    Args:
        after: the id to continue after.
    """
    table = schema.funding
    rows = sql.execute(
        select(*_STORED)
        .where(
            table.c.ciphertext.is_not(None),
            table.c.encryption_key_id != key_id,
            table.c.id > after,
        )
        .order_by(table.c.id)
        .limit(most)
    )
    return [StoredKey(*row) for row in rows]


def reencrypt(sql: Sql, old: StoredKey, new: StoredKey) -> None:
    """Replace the ciphertext of a key, unless the stored key has changed in the meantime."""
    table = schema.funding
    sql.execute(
        update(table)
        .where(table.c.id == old.id, table.c.ciphertext == old.ciphertext)
        .values(ciphertext=new.ciphertext, encryption_key_id=new.encryption_key_id)
    )


# -- OpenRouter

#: The maximum number of open requests of one payer.
MAX_OPEN_REQUESTS = 20


def add_request(sql: Sql, request: FundingRequest, now: int) -> None:
    """Store a new request. Delete expired ones, and the payer's oldest if there are too many.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer's data was deleted.
    """
    accounts.check_payer(sql, request.payer_id)
    table = schema.funding_requests
    sql.execute(delete(table).where(table.c.expires_at <= now))
    kept = (
        select(table.c.state_hash)
        .where(table.c.payer_id == request.payer_id)
        .order_by(table.c.created_at.desc(), table.c.state_hash)
        .limit(MAX_OPEN_REQUESTS - 1)
    )
    sql.execute(
        delete(table).where(
            table.c.payer_id == request.payer_id,
            table.c.state_hash.not_in(select(kept.subquery().c.state_hash)),
        )
    )
    sql.execute(
        insert(table).values(
            state_hash=request.state_hash,
            payer_id=request.payer_id,
            cookie_hash=request.cookie_hash,
            verifier=request.verifier,
            limit_nanos=request.limit,
            return_to=request.return_to,
            created_at=now,
            expires_at=request.expires_at,
        )
    )


def take_request(sql: Sql, state_hash: str) -> FundingRequest | None:
    """Delete and return the request with this state. So it can be used only once."""
    table = schema.funding_requests
    row = sql.execute(
        delete(table)
        .where(table.c.state_hash == state_hash)
        .returning(
            table.c.state_hash,
            table.c.payer_id,
            table.c.cookie_hash,
            table.c.verifier,
            table.c.limit_nanos,
            table.c.return_to,
            table.c.expires_at,
        )
    ).first()
    return None if row is None else FundingRequest(*row)


_COLUMNS = (
    schema.funding.c.id,
    schema.funding.c.payer_id,
    schema.funding.c.kind,
    schema.funding.c.upstream,
    schema.funding.c.label,
    schema.funding.c.state,
    schema.funding.c.limit_nanos,
    schema.funding.c.created_at,
)
_STORED = (
    schema.funding.c.id,
    schema.funding.c.upstream,
    schema.funding.c.ciphertext,
    schema.funding.c.encryption_key_id,
)
