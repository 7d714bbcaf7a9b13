"""The ledger read from outside: proved from its rows, and exported. Changes nothing, and holds
nobody up: it reads one moment of the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import RowMapping, and_, func, select

from . import schema

#: How many rows of the ledger are in memory at a time.
PAGE = 1000
#: What a row says, in this order.
COLUMNS = tuple(column.name for column in schema.ledger.columns)


def verify(sql: Sql) -> list[str]:
    """Prove every total from its rows; each that differs is named in one line."""
    faults: list[str] = []
    by_user = ("app_id", "user_id", "month")
    billed = _sums(sql, schema.ledger, by_user, "billed_nanos")
    reserved = _sums(sql, schema.reservations, by_user, "reserved_nanos")
    totals = {
        (row.app_id, row.user_id, row.month): row for row in sql.execute(select(schema.totals))
    }
    faults += _compare("user", totals, billed, reserved)
    by_grant = ("app_id", "grant_hash")
    billed = _sums(sql, schema.ledger, by_grant, "billed_nanos")
    reserved = _sums(sql, schema.reservations, by_grant, "reserved_nanos")
    kept = {(row.app_id, row.token_hash): row for row in sql.execute(select(schema.grants))}
    return faults + _compare("grant", kept, billed, reserved)


def rows(sql: Sql, *, app_id: str | None = None, since: int | None = None) -> Iterator[RowMapping]:
    """The rows of the ledger, in order, a page at a time.

    Args:
        app_id: of this app only.
        since: settled at or after this moment (Unix seconds).
    """
    table = schema.ledger
    wanted = select(table).order_by(table.c.id).limit(PAGE)
    if app_id is not None:
        wanted = wanted.where(table.c.app_id == app_id)
    if since is not None:
        wanted = wanted.where(table.c.settled_at >= since)
    last = 0
    while page := sql.execute(wanted.where(table.c.id > last)).mappings().all():
        yield from page
        last = page[-1]["id"]


def _sums(sql: Sql, table: Any, keys: tuple[str, ...], amount: str) -> dict[tuple[Any, ...], int]:
    columns = [table.c[key] for key in keys]
    rows = sql.execute(
        select(*columns, func.sum(table.c[amount]))
        .where(and_(*(column.is_not(None) for column in columns)))
        .group_by(*columns)
    )
    return {tuple(row[:-1]): int(row[-1]) for row in rows}


def _compare(
    kind: str,
    totals: dict[Any, Any],
    billed: dict[tuple[Any, ...], int],
    reserved: dict[tuple[Any, ...], int],
) -> list[str]:
    faults: list[str] = []
    for key in sorted({*totals, *billed, *reserved}):
        row = totals.get(key)
        kept = (row.billed_nanos, row.reserved_nanos) if row is not None else (0, 0)
        proved = (billed.get(key, 0), reserved.get(key, 0))
        if kept != proved:
            faults.append(f"{kind} {key}: billed, reserved are {kept}, the rows say {proved}")
    return faults
