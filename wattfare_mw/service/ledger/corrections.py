"""Corrects the bill of a call that another process has settled, because it took the call's own
process for dead."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import insert, select, update

from ..records import Connection, Outcome, Payer, Terms, Totals
from . import rules, schema
from .clock import seconds

#: How a call has ended whose process was taken for dead: see :func:`.rules.expire`.
ASSUMED = ("abandoned", "expired", "lost")


def correct(
    sql: Sql, reservation_id: str, payer: Payer, outcome: Outcome, terms: Terms, now: datetime
) -> int | None:
    """Add a row that corrects the bill to what the call has cost, within its reservation and the
    cap, in the month of the reservation.

    Returns what is billed in addition, in nano-dollars, which may be negative; or None if there is
    nothing to correct.
    """
    ledger = schema.ledger
    row: Any = sql.execute(
        select(ledger).where(
            ledger.c.reservation_id == reservation_id,
            ledger.c.app_id == payer.app_id,
            ledger.c.user_id.is_not_distinct_from(payer.user_id),
            ledger.c.grant_hash.is_not_distinct_from(payer.grant_hash),
            ledger.c.corrects.is_(None),
            ledger.c.ended.in_(ASSUMED),
        )
    ).first()
    if row is None or _is_corrected(sql, row.id):
        return None
    cost = outcome.cost if outcome.generated else 0
    if row.grant_hash is None:
        delta = _correct_user(sql, row, cost, terms)
    else:
        delta = _correct_grant(sql, row, cost, generated=outcome.generated)
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
        )
    )
    return delta


def _is_corrected(sql: Sql, ledger_id: int) -> bool:
    rows = schema.ledger.c
    return sql.execute(select(rows.id).where(rows.corrects == ledger_id)).first() is not None


def _correct_user(sql: Sql, row: Any, cost: int, terms: Terms) -> int:
    users, totals = schema.connections, schema.totals
    # Locked as a reservation locks it: first the connection, then its totals.
    found: Any = sql.execute(
        select(users)
        .where(users.c.app_id == row.app_id, users.c.user_id == row.user_id)
        .with_for_update()
    ).one()
    of_month = (
        totals.c.app_id == row.app_id,
        totals.c.user_id == row.user_id,
        totals.c.month == row.month,
    )
    held: Any = sql.execute(select(totals).where(*of_month).with_for_update()).one()
    connection = Connection(found.cap_nanos, found.connected, found.revocations)
    room = rules.room_under(
        rules.cap_in_force(connection, terms), Totals(held.billed_nanos, held.reserved_nanos)
    )
    delta = rules.correction(row.billed_nanos, row.reserved_nanos, cost, room)
    sql.execute(update(totals).where(*of_month).values(billed_nanos=totals.c.billed_nanos + delta))
    return delta


def _correct_grant(sql: Sql, row: Any, cost: int, *, generated: bool) -> int:
    grants = schema.grants
    this = grants.c.token_hash == row.grant_hash
    found: Any = sql.execute(select(grants).where(this).with_for_update()).one()
    room = rules.room_under(found.cap_nanos, Totals(found.billed_nanos, found.reserved_nanos))
    delta = rules.correction(row.billed_nanos, row.reserved_nanos, cost, room)
    took_a_request = row.ended != "expired" or row.billed_nanos > 0
    given_back = 1 if took_a_request and not generated else 0
    sql.execute(
        update(grants)
        .where(this)
        .values(
            billed_nanos=grants.c.billed_nanos + delta,
            requests_left=grants.c.requests_left + given_back,
        )
    )
    return delta
