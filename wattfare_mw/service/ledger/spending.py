"""A payer's view of the ledger: their own connections, grants and calls.

Each function runs inside the open transaction of its argument ``sql``.
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

#: The position of a page of calls: the ``settled_at`` and the ``id`` of the last row before the
#: page.
Position = tuple[int, int]

#: To show the calls of one connection, a page searches at most this many calls of its payer. There
#: is no index by connection.
LOOKED_AT = 10_000
#: How many rows of an export are in memory at a time.
EXPORT_PAGE = 1000


class PayerConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as its payer sees it. Amounts are in nano-dollars, for this month.

    Attributes:
        key: identifies the connection in a URL, without the app's id of the user.
        cap: the monthly cap; None for no cap.
        ended_at: when the connection ended, in Unix seconds; None if it has not ended.
        ended: why it ended: ``revoked``, ``replaced`` by another payer, or ``removed`` with its
            funding.
        billed: the amount billed for calls that have ended.
        reserved: the amount reserved by calls in flight.
        funding_id: the funding that pays; None if the operator's key pays, or if the built-in model
            answers.
        funding: the label of the funding.
        funding_state: ``valid``, ``invalid`` or ``removed``.
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
    funding_state: str | None


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
    """A row of the ledger that this payer paid for. A correction is a separate row."""

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


def connections(
    sql: Sql, payer_id: str, now: datetime, *, ended: bool, limit: int, offset: int = 0
) -> list[PayerConnection]:
    """This payer's connections: the active ones, newest first, or those that have ended, latest end
    first.

    Args:
        limit: the maximum number of rows.
        offset: how many rows to skip.
    """
    table = schema.payer_connections
    has_ended = table.c.ended_at.is_not(None) if ended else table.c.ended_at.is_(None)
    latest = table.c.ended_at if ended else table.c.connected_at
    rows = sql.execute(
        _connections_of(payer_id, now)
        .where(has_ended)
        .order_by(latest.desc(), table.c.app_id, table.c.user_id)
        .limit(limit)
        .offset(offset)
    )
    return [_connection(row) for row in rows]


def find_connection(sql: Sql, payer_id: str, key: str, now: datetime) -> PayerConnection | None:
    """This payer's connection with this key."""
    table = schema.payer_connections
    mine = select(table.c.app_id, table.c.user_id).where(table.c.payer_id == payer_id)
    for app_id, user_id in sql.execute(mine).all():
        if key_of(app_id, user_id) == key:
            wanted = _connections_of(payer_id, now).where(
                table.c.app_id == app_id, table.c.user_id == user_id
            )
            return _connection(sql.execute(wanted).one())
    return None


def grants(sql: Sql, payer_id: str, now: datetime, limit: int) -> list[PayerGrant]:
    """This payer's grants that have not expired, the latest first, at most ``limit``."""
    table = schema.grants
    rows = sql.execute(
        select(table, schema.apps.c.name)
        .join(schema.apps, schema.apps.c.id == table.c.app_id)
        .where(table.c.payer_id == payer_id, table.c.expires_at > seconds(now))
        .order_by(table.c.expires_at.desc(), table.c.token_hash)
        .limit(limit)
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
    before: Position | None = None,
    account: tuple[str, str] | None = None,
) -> tuple[list[PayerCall], Position | None]:
    """The calls that this payer paid for, newest first, and the position of the next page. The
    position is None for the last page.

    Args:
        limit: the maximum number of rows.
        before: only rows that are older than the row at this position.
        account: only the calls of this app id and user id. A page searches the next
            :data:`LOOKED_AT` calls of the payer, so it may have fewer rows than ``limit`` although
            more follow.
    """
    table = schema.ledger
    order = table.c.settled_at.desc(), table.c.id.desc()
    of_payer = table.c.payer_id == payer_id, _INDEXED
    within = of_payer
    if before is not None:
        # The `or_` implies `settled_at <= …`. But with it, the database can start at the right
        # place of its index.
        within = (
            *of_payer,
            table.c.settled_at <= before[0],
            or_(table.c.settled_at < before[0], table.c.id < before[1]),
        )
    wanted = _calls.where(*within).order_by(*order).limit(limit + 1)
    end = None
    if account is not None:
        looked_at = select(table.c.id).where(*within).order_by(*order).limit(LOOKED_AT)
        wanted = (
            _calls.where(
                table.c.id.in_(looked_at.scalar_subquery()),
                table.c.app_id == account[0],
                table.c.user_id == account[1],
            )
            .order_by(*order)
            .limit(limit + 1)
        )
        last = select(table.c.settled_at, table.c.id).where(*within).order_by(*order)
        end = sql.execute(last.offset(LOOKED_AT - 1).limit(1)).first()
    found = [_call(row) for row in sql.execute(wanted)]
    if len(found) > limit:
        found = found[:limit]
        return found, (found[-1].settled_at, found[-1].id)
    return found, None if end is None else (end.settled_at, end.id)


def export(sql: Sql, payer_id: str, after: Position) -> list[PayerCall]:
    """The next page of all calls that this payer paid for, the oldest first.

    Args:
        after: the position of the last row of the page before; ``(0, 0)`` for the first page.
    """
    table = schema.ledger
    wanted = (
        _calls.where(
            table.c.payer_id == payer_id,
            _INDEXED,
            table.c.settled_at >= after[0],
            or_(table.c.settled_at > after[0], table.c.id > after[1]),
        )
        .order_by(table.c.settled_at, table.c.id)
        .limit(EXPORT_PAGE)
    )
    return [_call(row) for row in sql.execute(wanted)]


_calls = select(schema.ledger, schema.apps.c.name).join(
    schema.apps, schema.apps.c.id == schema.ledger.c.app_id
)
# The index is partial: it has only the rows for which this condition is true.
_INDEXED = text("ledger.payer_id <> ''")


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


def _connections_of(payer_id: str, now: datetime) -> Select[Any]:
    mine, current, totals = schema.payer_connections, schema.connections, schema.totals
    return (
        select(
            mine,
            schema.apps.c.name,
            schema.apps.c.mode,
            current.c.funding_id,
            schema.funding.c.label.label("funding"),
            schema.funding.c.state.label("funding_state"),
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
    )


def _connection(row: Row[Any]) -> PayerConnection:
    return PayerConnection(
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
        funding_state=row.funding_state,
    )
