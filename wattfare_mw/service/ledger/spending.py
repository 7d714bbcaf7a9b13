"""What one payer sees of the ledger: their connections, grants and calls, and nobody else's.

Each function runs inside the one transaction of the connection that it is given.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import Row, Select, and_, func, or_, select, text

from . import rules, schema
from .clock import seconds

#: How many rows of an export are in memory at a time.
EXPORT_PAGE = 1000


class PayerConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as its payer sees it. Amounts are nano-dollars of this month.

    Attributes:
        key: names the connection in a URL, without the app's id of the user.
        cap: for each month; None for no cap.
        ended_at: when it ended (Unix seconds); None while it lasts.
        ended: why: ``revoked``, ``replaced`` by another payer, or ``removed`` with its funding.
        billed: by calls that have ended.
        reserved: by calls in flight.
        funding_id: None if the operator's key pays, or the built-in model answers.
    """

    key: str
    app_id: str
    user_id: str
    app_name: str
    is_test: bool
    label: str | None
    cap: int | None
    connected_at: int
    ended_at: int | None
    ended: str | None
    billed: int
    reserved: int
    funding_id: str | None
    funding: str | None


class PayerGrant(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time grant that its payer has approved, and that has not expired."""

    key: str
    app_id: str
    app_name: str
    requests_left: int
    cap: int
    billed: int
    expires_at: int


class PayerCall(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger that this payer paid for. A correction is a row of its own."""

    id: int
    settled_at: int
    app_name: str
    app_id: str
    user_id: str | None
    model: str
    prompt_tokens: int
    completion_tokens: int
    billed: int
    ended: str
    is_correction: bool
    reservation_id: str


def key_of(app_id: str, user_id: str) -> str:
    """The key of a payer's connection."""
    return hashlib.sha256(f"{app_id}\0{user_id}".encode()).hexdigest()[:32]


def connections(sql: Sql, payer_id: str, now: datetime) -> list[PayerConnection]:
    """This payer's connections: those that last first, then those that ended, the latest first."""
    mine, current, totals = schema.payer_connections, schema.connections, schema.totals
    rows = sql.execute(
        select(
            mine,
            schema.apps.c.name,
            schema.apps.c.mode,
            current.c.funding_id,
            schema.funding.c.label.label("funding"),
            func.coalesce(totals.c.billed_nanos, 0).label("billed"),
            func.coalesce(totals.c.reserved_nanos, 0).label("reserved"),
        )
        .join(schema.apps, schema.apps.c.id == mine.c.app_id)
        .outerjoin(
            current,
            and_(
                current.c.app_id == mine.c.app_id,
                current.c.user_id == mine.c.user_id,
                current.c.payer_id == mine.c.payer_id,
            ),
        )
        .outerjoin(
            schema.funding,
            and_(
                schema.funding.c.id == current.c.funding_id, schema.funding.c.payer_id == payer_id
            ),
        )
        .outerjoin(
            totals,
            and_(
                totals.c.app_id == mine.c.app_id,
                totals.c.user_id == mine.c.user_id,
                totals.c.payer_id == mine.c.payer_id,
                totals.c.month == rules.month_of(now),
            ),
        )
        .where(mine.c.payer_id == payer_id)
        .order_by(
            mine.c.ended_at.is_not(None),
            mine.c.ended_at.desc(),
            mine.c.connected_at.desc(),
            mine.c.app_id,
            mine.c.user_id,
        )
    )
    return [
        PayerConnection(
            key=key_of(row.app_id, row.user_id),
            app_id=row.app_id,
            user_id=row.user_id,
            app_name=row.name,
            is_test=row.mode == "test",
            label=row.account_label,
            cap=row.cap_nanos,
            connected_at=row.connected_at,
            ended_at=row.ended_at,
            ended=row.ended,
            billed=row.billed,
            reserved=row.reserved,
            funding_id=row.funding_id,
            funding=row.funding,
        )
        for row in rows
    ]


def grants(sql: Sql, payer_id: str, now: datetime) -> list[PayerGrant]:
    """This payer's grants that have not expired, the latest first."""
    table = schema.grants
    rows = sql.execute(
        select(table, schema.apps.c.name)
        .join(schema.apps, schema.apps.c.id == table.c.app_id)
        .where(table.c.payer_id == payer_id, table.c.expires_at > seconds(now))
        .order_by(table.c.expires_at.desc(), table.c.token_hash)
    )
    return [
        PayerGrant(
            key=row.token_hash,
            app_id=row.app_id,
            app_name=row.name,
            requests_left=row.requests_left,
            cap=row.cap_nanos,
            billed=row.billed_nanos,
            expires_at=row.expires_at,
        )
        for row in rows
    ]


def calls(
    sql: Sql,
    payer_id: str,
    limit: int,
    *,
    before: tuple[int, int] | None = None,
    account: tuple[str, str] | None = None,
) -> list[PayerCall]:
    """The calls that this payer paid for, the latest first.

    Args:
        limit: the most rows.
        before: only those before this ``(settled_at, id)``.
        account: only those of this app's id and user's id.
    """
    table = schema.ledger
    wanted = _calls_of(payer_id).order_by(table.c.settled_at.desc(), table.c.id.desc())
    if account is not None:
        wanted = wanted.where(table.c.app_id == account[0], table.c.user_id == account[1])
    if before is not None:
        # The first condition lets the database begin at the right place of its index.
        wanted = wanted.where(
            table.c.settled_at <= before[0],
            or_(table.c.settled_at < before[0], table.c.id < before[1]),
        )
    return [_call(row) for row in sql.execute(wanted.limit(limit))]


def export(sql: Sql, payer_id: str, after: tuple[int, int]) -> list[PayerCall]:
    """The next page of all calls that this payer paid for, the oldest first.

    Args:
        after: the ``(settled_at, id)`` of the last row of the page before; ``(0, 0)`` for the
            first page.
    """
    table = schema.ledger
    wanted = (
        _calls_of(payer_id)
        .where(
            table.c.settled_at >= after[0],
            or_(table.c.settled_at > after[0], table.c.id > after[1]),
        )
        .order_by(table.c.settled_at, table.c.id)
    )
    return [_call(row) for row in sql.execute(wanted.limit(EXPORT_PAGE))]


def _calls_of(payer_id: str) -> Select[Any]:
    table = schema.ledger
    return (
        select(table, schema.apps.c.name)
        .join(schema.apps, schema.apps.c.id == table.c.app_id)
        # The index has only the rows that this text lets in.
        .where(table.c.payer_id == payer_id, text("ledger.payer_id <> ''"))
    )


def _call(row: Row[Any]) -> PayerCall:
    return PayerCall(
        id=row.id,
        settled_at=row.settled_at,
        app_name=row.name,
        app_id=row.app_id,
        user_id=row.user_id,
        model=row.model,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        billed=row.billed_nanos,
        ended=row.ended,
        is_correction=row.corrects is not None,
        reservation_id=row.reservation_id,
    )
