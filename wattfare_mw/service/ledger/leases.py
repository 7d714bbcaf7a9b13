"""Leases in SQL, for any database. Finds the calls of dead processes, and how each of them
ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, case, delete, exists, func, select, true, update
from sqlalchemy import Connection as Sql

from ..records import Account, OrphanedStream, Outcome, Reservation
from . import rules, schema
from .clock import LeaseTime, milliseconds, seconds

#: The maximum number of dead processes' calls to read at a time.
SWEEP_BATCH = 100
#: The largest integer of the database. A higher cost is lowered to it, which is still above any
#: reservation.
MAX_INTEGER = 2**63 - 1


def oldest_call(sql: Sql, account: Account) -> int | None:
    """When the oldest call in flight of this account was reserved, in Unix seconds."""
    calls = schema.reservations.c
    return sql.execute(
        select(func.min(calls.reserved_at)).where(
            calls.app_id == account.app_id,
            calls.user_id.is_not_distinct_from(account.user_id),
            calls.grant_hash.is_not_distinct_from(account.grant_hash),
        )
    ).scalar_one()


def end_lease(sql: Sql, holder: str) -> None:
    """End a process's lease. Any process may then settle its calls."""
    sql.execute(delete(schema.holders).where(schema.holders.c.id == holder))


def expire_leases(sql: Sql, now: datetime, lease_now: LeaseTime) -> None:
    """Delete the leases that were not renewed, and the idempotency keys that are too old."""
    table = schema.holders
    boot, ends = table.c.boot, table.c.expires_at_ms
    ended = case(
        (boot == "", ends <= milliseconds(now)),
        (boot == lease_now.boot, ends <= lease_now.ms),
        else_=true(),  # the machine has restarted since then
    )
    sql.execute(delete(table).where(ended))
    keys = schema.idempotency
    sql.execute(delete(keys).where(keys.c.created_at <= seconds(now) - rules.KEY_SECONDS))


def orphaned_calls(sql: Sql, *, keep_streams: bool = False) -> list[tuple[str, Account, Outcome]]:
    """Up to ``SWEEP_BATCH`` calls whose process has no valid lease, and the outcome of each.

    Args:
        keep_streams: True to leave out streams whose true cost the provider can report.
    """
    where = [schema.reservations.c.generation_id.is_(None)] if keep_streams else []
    return [(row.id, _account_of(row), _expired(row)) for row in _orphans(sql, *where)]


def take_over(sql: Sql, holder: str) -> list[OrphanedStream]:
    """Make this process the holder of up to ``SWEEP_BATCH`` streams whose process has no valid
    lease, and whose true cost the provider can report. Their reservations stay until this process
    settles them."""
    holders, calls = schema.holders.c, schema.reservations
    if sql.execute(select(holders.id).where(holders.id == holder)).first() is None:
        return []  # the lease of this process has expired
    taken: list[OrphanedStream] = []
    for row in _orphans(sql, calls.c.generation_id.is_not(None)):
        # Two processes may try this at the same time. The second one finds another holder, and
        # changes nothing.
        this = update(calls).where(calls.c.id == row.id, calls.c.holder == row.holder)
        if sql.execute(this.values(holder=holder)).rowcount:
            stream = OrphanedStream(
                row.id, _account_of(row), row.generation_id, _expired(row), row.funding_id
            )
            taken.append(stream)
    return taken


def _orphans(sql: Sql, *where: ColumnElement[bool]) -> list[Any]:
    calls, holders = schema.reservations, schema.holders
    rows = sql.execute(
        select(calls)
        .where(~exists().where(holders.c.id == calls.c.holder), *where)
        .order_by(calls.c.id)
        .limit(SWEEP_BATCH)
    )
    return cast("list[Any]", rows.all())


def _account_of(row: Any) -> Account:
    return Account(row.app_id, row.user_id, row.grant_hash)


def _expired(row: Any) -> Outcome:
    held = Reservation(row.reserved_nanos, row.stream, row.metered_nanos, row.unbounded)
    cost, ended = rules.expire(held)
    return Outcome(
        ended=ended,
        generated=cost > 0 or ended != "expired",
        cost=cost,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )
