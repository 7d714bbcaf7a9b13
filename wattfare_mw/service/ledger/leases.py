"""Leases in SQL, for any database: whose calls nobody holds any more, and how each has ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection as Sql
from sqlalchemy import case, delete, exists, select, true

from ..records import Outcome, Reservation
from . import rules, schema
from .clock import LeaseTime, milliseconds, seconds

#: How many of the calls that others left behind are looked up at a time.
SWEEP_BATCH = 100
#: What the database's integers hold; a cost beyond is more than any reservation anyway.
MAX_INTEGER = 2**63 - 1


def end_lease(sql: Sql, holder: str) -> None:
    """End a process's lease; what it has not settled is anybody's from now on."""
    sql.execute(delete(schema.holders).where(schema.holders.c.id == holder))


def expire_leases(sql: Sql, now: datetime, lease_now: LeaseTime) -> None:
    """Delete the leases that were not renewed, and the idempotency keys that are too old."""
    table = schema.holders
    boot, ends = table.c.boot, table.c.expires_at_ms
    ended = case(
        (boot == "", ends <= milliseconds(now)),
        (boot == lease_now.boot, ends <= lease_now.ms),
        else_=true(),  # the machine has been started anew since
    )
    sql.execute(delete(table).where(ended))
    keys = schema.idempotency
    sql.execute(delete(keys).where(keys.c.created_at <= seconds(now) - rules.KEY_SECONDS))


def orphaned_calls(sql: Sql) -> list[tuple[str, Outcome]]:
    """Some of the calls that nobody holds any more, and how each has ended."""
    calls, holders = schema.reservations, schema.holders
    rows = sql.execute(
        select(calls)
        .where(~exists().where(holders.c.id == calls.c.holder))
        .order_by(calls.c.id)
        .limit(SWEEP_BATCH)
    )
    return [(row.id, _expired(row)) for row in cast("list[Any]", rows.all())]


def _expired(row: Any) -> Outcome:
    cost, ended = rules.expire(Reservation(row.reserved_nanos, row.stream, row.metered_nanos))
    return Outcome(
        ended=ended,
        generated=cost > 0 or not row.stream,
        cost=cost,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )
