"""Deletes payers who never pay: anyone can create a passkey, and many are never used again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from sqlalchemy import ColumnElement, Select, delete, exists, literal_column, select
from sqlalchemy import Connection as Sql

from ...errors import WattfareError
from ...logs import get_logger
from ..ledger import accounts, schema
from ..ledger.clock import seconds
from ..ledger.store import Store

#: How many days after the last sign-in a payer who has never paid is kept.
KEPT_DAYS = 30
#: The maximum number of payers that one transaction reads.
AT_A_TIME = 200
#: The pause after such a transaction, and after the last one, in seconds.
PAUSE_SECONDS = 1.0
REST_SECONDS = 3600.0

log = get_logger("wattfare_mw.service", show_messages=False)


class UnusedPayers:
    """Deletes unused payers while the service runs, from :meth:`start` to :meth:`close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the background."""
        self._task = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _sweep_forever(self) -> None:
        after = ""
        while True:
            try:
                found = await self._store.at(
                    lambda sql, now, after=after: sweep(sql, after, seconds(now))
                )
            except WattfareError:
                found = None  # the database is unavailable, which the lease reports
            except Exception:
                log.exception("deleting unused payers failed")
                found = None
            after = found or ""
            await asyncio.sleep(PAUSE_SECONDS if found else REST_SECONDS)


def sweep(sql: Sql, after: str, now: int) -> str | None:
    """Read the next payers in the order of their ids, and delete unused ones.

    Args:
        after: the id to begin after; empty for the first.
        now: Unix seconds.

    Returns: the id after which to continue; None if there are no more payers.
    """
    table, sign_ins = schema.payers, schema.sign_ins
    wanted = select(table.c.id).where(table.c.id > after).order_by(table.c.id).limit(AT_A_TIME)
    looked_at = _ids(sql, wanted)
    if not looked_at:
        return None
    # First, in the same order as a sign-in, to avoid a deadlock.
    sql.execute(delete(sign_ins).where(sign_ins.c.expires_at <= now))
    # A locked payer is in use. While this holds the lock, a payer can neither sign in nor allow.
    these = unused(now).where(table.c.id > after, table.c.id <= looked_at[-1])
    found = _ids(sql, these.order_by(table.c.id).with_for_update(skip_locked=True))
    if found:
        for proofs in (schema.passkeys, schema.recovery_codes):
            accounts.lock_rows(sql, proofs, proofs.c.payer_id.in_(found))
        # Check again, because other transactions may have committed before the locks.
        still = _ids(sql, unused(now).where(table.c.id.in_(found)))
        _delete(sql, set(still) - _in_approvals(sql, still))
    return looked_at[-1] if len(looked_at) == AT_A_TIME else None


def unused(now: int) -> Select[str]:
    """The payers who have paid for nothing, have no funding, and have not signed in for
    :data:`KEPT_DAYS`. A payer whose data was deleted stays, because the ledger refers to it."""
    table, since = schema.payers, now - KEPT_DAYS * 86_400
    passkeys, codes, ledger = schema.passkeys, schema.recovery_codes, schema.ledger
    return select(table.c.id).where(
        table.c.deleted_at.is_(None),
        table.c.created_at <= since,
        ~_has(passkeys.c.payer_id, passkeys.c.last_used_at > since),
        ~_has(codes.c.payer_id, codes.c.used_at > since),
        ~_has(schema.sign_ins.c.payer_id),
        ~_has(schema.payer_connections.c.payer_id),
        ~_has(schema.connections.c.payer_id),
        ~_has(schema.grants.c.payer_id),
        ~_has(schema.funding.c.payer_id),
        # Written as in the index, so that it is used.
        ~_has(ledger.c.payer_id, ledger.c.payer_id != literal_column("''")),
    )


def _ids(sql: Sql, query: Select[str]) -> list[str]:
    return list(sql.execute(query).scalars())


def _has(payer_id: ColumnElement[str], *where: ColumnElement[bool]) -> ColumnElement[bool]:
    """True for a payer with such a row."""
    return exists().where(payer_id == schema.payers.c.id, *where)


def _in_approvals(sql: Sql, payer_ids: list[str]) -> set[str]:
    """The payers among these who have allowed something lately."""
    table = schema.approvals
    return set(_ids(sql, select(table.c.payer_id).where(table.c.payer_id.in_(payer_ids))))


def _delete(sql: Sql, payer_ids: set[str]) -> None:
    if not payer_ids:
        return
    for column in (
        schema.challenges.c.payer_id,
        schema.funding_requests.c.payer_id,
        schema.recovery_codes.c.payer_id,
        schema.passkeys.c.payer_id,
        schema.payers.c.id,
    ):
        sql.execute(delete(column.table).where(column.in_(payer_ids)))
    log.info("%d payers who never paid were deleted", len(payer_ids))
