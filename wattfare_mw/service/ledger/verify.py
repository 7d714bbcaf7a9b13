"""Verifies the ledger: compares each total with the sum of its rows. Changes nothing."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import and_, func, or_, select

from . import schema


def verify(sql: Sql) -> list[str]:
    """One line for each total that differs from the sum of its rows, and for each corrected bill
    that is negative or above its reservation."""
    faults = _wrong_corrections(sql)
    by_user = ("app_id", "user_id", "payer_id", "month")
    billed = _sums(sql, schema.ledger, by_user, "billed_nanos")
    reserved = _sums(sql, schema.reservations, by_user, "reserved_nanos")
    totals = {
        (row.app_id, row.user_id, row.payer_id, row.month): row
        for row in sql.execute(select(schema.totals))
    }
    faults += _compare("user", totals, billed, reserved)
    by_grant = ("app_id", "grant_hash")
    billed = _sums(sql, schema.ledger, by_grant, "billed_nanos")
    reserved = _sums(sql, schema.reservations, by_grant, "reserved_nanos")
    kept = {(row.app_id, row.token_hash): row for row in sql.execute(select(schema.grants))}
    faults += _compare("grant", kept, billed, reserved)
    billed = _sums_of_operator(sql, schema.ledger, "billed_nanos")
    reserved = _sums_of_operator(sql, schema.reservations, "reserved_nanos")
    shared = {(row.scope, row.month): row for row in sql.execute(select(schema.operator_totals))}
    return faults + _compare("operator", shared, billed, reserved)


def lost_calls(sql: Sql) -> list[str]:
    """One line for each call without a bound whose process died, because its true cost is unknown.
    Calls whose bill was corrected later are left out."""
    first, later = schema.ledger, schema.ledger.alias()
    rows = sql.execute(
        select(first)
        .outerjoin(later, later.c.corrects == first.c.id)
        .where(first.c.ended == "lost", later.c.id.is_(None))
        .order_by(first.c.id)
    )
    return [
        f"call {row.reservation_id}: its process died. Billed the last recorded cost,"
        f" {row.billed_nanos} of {row.reserved_nanos} held: model={row.model!r}"
        f" request_id={row.request_id}"
        for row in rows
    ]


def _wrong_corrections(sql: Sql) -> list[str]:
    first, later = schema.ledger, schema.ledger.alias()
    billed = first.c.billed_nanos + later.c.billed_nanos
    wrong = sql.execute(
        select(first.c.reservation_id, billed, first.c.reserved_nanos)
        .join(later, later.c.corrects == first.c.id)
        .where(or_(billed < 0, billed > first.c.reserved_nanos))
        .order_by(first.c.id)
    )
    return [
        f"call {reservation_id}: {total} billed in total, {reserved} reserved"
        for reservation_id, total, reserved in wrong
    ]


def _sums(sql: Sql, table: Any, keys: tuple[str, ...], amount: str) -> dict[tuple[Any, ...], int]:
    columns = [table.c[key] for key in keys]
    rows = sql.execute(
        select(*columns, func.sum(table.c[amount]))
        .where(and_(*(column.is_not(None) for column in columns)))
        .group_by(*columns)
    )
    return {tuple(row[:-1]): int(row[-1]) for row in rows}


def _sums_of_operator(sql: Sql, table: Any, amount: str) -> dict[tuple[Any, ...], int]:
    rows = sql.execute(
        select(table.c.app_id, table.c.month, func.sum(table.c[amount]))
        .where(table.c.operator)
        .group_by(table.c.app_id, table.c.month)
    )
    sums: dict[tuple[Any, ...], int] = {}
    for app_id, month, total in rows:
        for scope in (app_id, schema.ALL_APPS):
            sums[scope, month] = sums.get((scope, month), 0) + int(total)
    return sums


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
            faults.append(
                f"{kind} {key}: the totals (billed, reserved) are {kept}, but the rows"
                f" add up to {proved}"
            )
    return faults
