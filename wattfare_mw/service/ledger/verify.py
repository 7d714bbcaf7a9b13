"""The proof of the ledger: every total is compared with the sum of its rows. Changes nothing."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import and_, func, select

from . import schema


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
