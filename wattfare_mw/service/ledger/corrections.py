"""Corrects bills. A process can seem dead, so that another process settles one of its calls. If the
first process is still running, it corrects the bill to the true cost."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy import Connection as Sql

from ..records import Account, Connection, Outcome, Terms, Totals
from . import rules, schema
from .clock import seconds

#: How calls end in the ledger if their process seemed dead: see :func:`.rules.expire`.
ASSUMED = ("abandoned", "expired", "lost")


def correct(
    sql: Sql, reservation_id: str, account: Account, outcome: Outcome, terms: Terms, now: datetime
) -> int | None:
    """Add a row that corrects the bill to the true cost, within the reservation, the cap and the
    operator's ceilings. The row belongs to the month of the reservation.

    Returns the additional bill, in nano-dollars, which may be negative. None if there is nothing to
    correct.
    """
    ledger = schema.ledger
    row: Any = sql.execute(
        select(ledger).where(
            ledger.c.reservation_id == reservation_id,
            ledger.c.app_id == account.app_id,
            ledger.c.user_id.is_not_distinct_from(account.user_id),
            ledger.c.grant_hash.is_not_distinct_from(account.grant_hash),
            ledger.c.corrects.is_(None),
            ledger.c.ended.in_(ASSUMED),
        )
    ).first()
    if row is None or _is_corrected(sql, row.id):
        return None
    cost = outcome.cost if outcome.generated else 0
    own = _room_of_user(sql, row, terms) if row.grant_hash is None else _room_of_grant(sql, row)
    room = rules.least_of(own, *_rooms_of_operator(sql, row, terms))
    delta = rules.correction(row.billed_nanos, row.reserved_nanos, cost, room)
    if row.grant_hash is None:
        _correct_user(sql, row, delta)
    else:
        _correct_grant(sql, row, delta, generated=outcome.generated)
    if row.operator:
        _correct_operator(sql, row, delta)
    sql.execute(
        insert(ledger).values(
            reservation_id=row.reservation_id,
            reserved_at=row.reserved_at,
            settled_at=seconds(now),
            app_id=row.app_id,
            user_id=row.user_id,
            grant_hash=row.grant_hash,
            month=row.month,
            model=row.model,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            reserved_nanos=row.reserved_nanos,
            billed_nanos=delta,
            claimed_nanos=outcome.claimed,
            ended=outcome.ended,
            request_id=row.request_id,
            corrects=row.id,
            payer_id=row.payer_id,
            funding_id=row.funding_id,
            operator=row.operator,
        )
    )
    return delta


def _is_corrected(sql: Sql, ledger_id: int) -> bool:
    rows = schema.ledger.c
    return sql.execute(select(rows.id).where(rows.corrects == ledger_id)).first() is not None


def _room_of_user(sql: Sql, row: Any, terms: Terms) -> int | None:
    # Lock in the same order as a reservation: first the connection, then its totals.
    cap = rules.cap_in_force(_connection_of(sql, row), terms)
    held: Any = sql.execute(select(schema.totals).where(*_totals_of(row)).with_for_update()).one()
    return rules.room_under(cap, Totals(held.billed_nanos, held.reserved_nanos))


def _connection_of(sql: Sql, row: Any) -> Connection:
    """The connection with the cap of this row's payer, who may have been replaced since."""
    users, seen = schema.connections, schema.payer_connections
    found: Any = sql.execute(
        select(users)
        .where(users.c.app_id == row.app_id, users.c.user_id == row.user_id)
        .with_for_update()
    ).one()
    cap = found.cap_nanos
    if found.payer_id != row.payer_id:
        kept: Any = sql.execute(
            select(seen.c.cap_nanos).where(
                seen.c.payer_id == row.payer_id,
                seen.c.app_id == row.app_id,
                seen.c.user_id == row.user_id,
            )
        ).first()
        # Without a payer, the previous cap is unknown, so there is no additional bill.
        cap = 0 if kept is None else kept.cap_nanos
    return Connection(
        cap,
        found.connected,
        found.revocations,
        row.payer_id,
        row.funding_id,
        others=_spent_by_others(sql, row),
    )


def _spent_by_others(sql: Sql, row: Any) -> int:
    table = schema.totals
    return int(
        sql.execute(
            select(func.coalesce(func.sum(table.c.billed_nanos + table.c.reserved_nanos), 0)).where(
                table.c.app_id == row.app_id,
                table.c.user_id == row.user_id,
                table.c.payer_id != row.payer_id,
                table.c.month == row.month,
            )
        ).scalar_one()
    )


def _room_of_grant(sql: Sql, row: Any) -> int | None:
    grants = schema.grants
    this = grants.c.token_hash == row.grant_hash
    found: Any = sql.execute(select(grants).where(this).with_for_update()).one()
    return rules.room_under(found.cap_nanos, Totals(found.billed_nanos, found.reserved_nanos))


def _rooms_of_operator(sql: Sql, row: Any, terms: Terms) -> list[int | None]:
    if not row.operator:
        return []
    table = schema.operator_totals
    rooms: list[int | None] = []
    for scope, ceiling in ((row.app_id, terms.app_ceiling), (schema.ALL_APPS, terms.total_ceiling)):
        held: Any = sql.execute(
            select(table)
            .where(table.c.scope == scope, table.c.month == row.month)
            .with_for_update()
        ).one()
        rooms.append(rules.room_under(ceiling, Totals(held.billed_nanos, held.reserved_nanos)))
    return rooms


def _totals_of(row: Any) -> tuple[ColumnElement[bool], ...]:
    totals = schema.totals
    return (
        totals.c.app_id == row.app_id,
        totals.c.user_id == row.user_id,
        totals.c.payer_id == row.payer_id,
        totals.c.month == row.month,
    )


def _correct_user(sql: Sql, row: Any, delta: int) -> None:
    totals = schema.totals
    sql.execute(
        update(totals).where(*_totals_of(row)).values(billed_nanos=totals.c.billed_nanos + delta)
    )


def _correct_grant(sql: Sql, row: Any, delta: int, *, generated: bool) -> None:
    grants = schema.grants
    took_a_request = row.ended != "expired" or row.billed_nanos > 0
    given_back = 1 if took_a_request and not generated else 0
    sql.execute(
        update(grants)
        .where(grants.c.token_hash == row.grant_hash)
        .values(
            billed_nanos=grants.c.billed_nanos + delta,
            requests_left=grants.c.requests_left + given_back,
        )
    )


def _correct_operator(sql: Sql, row: Any, delta: int) -> None:
    table = schema.operator_totals
    sql.execute(
        update(table)
        .where(table.c.scope.in_((row.app_id, schema.ALL_APPS)), table.c.month == row.month)
        .values(billed_nanos=table.c.billed_nanos + delta)
    )
