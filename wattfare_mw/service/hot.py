"""What SQLite is asked for each call: statements of SQLAlchemy's, compiled once, that go to the
driver itself. Each function reads, asks the rules and writes, inside the one transaction of the
connection that it is given. Totals change with the rows that they sum up."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import BindParameter, ClauseElement, Table, and_, bindparam, delete, select, update
from sqlalchemy.dialects import sqlite

from . import rules, schema
from .keys import App
from .ledger import MAX_INTEGER, lease_lost
from .orders import Metered, Order, Outcome, Renewal
from .queries import milliseconds, seconds
from .rules import Connection, Grant, Prior, Terms, Totals


def reserve(cursor: sqlite3.Cursor, order: Order, terms: Terms, holder: str, now: datetime) -> int:
    """Reserve what the call may cost, and say how much that is.

    Raises:
        WattfareError: the refusal, as the rules give it; nothing has changed.
    """
    at = seconds(now)
    month = rules.month_of(now)
    asked = {"holder": holder, "now_ms": milliseconds(now), "app_id": order.app_id}
    if order.grant_hash is None:
        asked |= {"user_id": order.user_id, "month": month}
        found = cursor.execute(_PAYING_USER, asked).fetchone()
    else:
        found = cursor.execute(_PAYING_GRANT, asked | {"grant_hash": order.grant_hash}).fetchone()
    if found is None:
        raise lease_lost()
    if order.key is not None:
        rules.check_key(order.key, _prior(cursor, order, at))
    revocations = 0
    if order.grant_hash is None:
        connection, before = _account(found)
        totals, granted = rules.reserve(connection, before, order.bounds, terms)
        _write_totals(cursor, order.app_id, order.user_id, month, totals)
        revocations = connection.revocations if connection else 0
    else:
        after, granted = rules.reserve_grant(_grant(found), order.bounds, at)
        _write_grant(cursor, order.grant_hash, after)
    cursor.execute(
        _HOLD,
        {
            "id": order.id,
            "app_id": order.app_id,
            "user_id": order.user_id,
            "grant_hash": order.grant_hash,
            "month": month,
            "model": order.model,
            "reserved_nanos": granted,
            "reserved_at": at,
            "request_id": order.request_id,
            "holder": holder,
            "stream": order.stream,
            "revocations": revocations,
        },
    )
    if order.key is not None:
        key = _key(order) | {"body_hash": order.key.body, "reservation_id": order.id}
        cursor.execute(_WRITE_KEY, key | {"created_at": at})
    return granted


def settle(
    cursor: sqlite3.Cursor, reservation_id: str, outcome: Outcome, now: datetime
) -> int | None:
    """End a reservation and bill its outcome, in the month in which it was reserved.

    Returns what was billed; None where there is no such reservation (any more): settling twice
    changes nothing.
    """
    this = {"id": reservation_id}
    found = cursor.execute(_HELD, this).fetchone()
    if found is None:
        return None
    cursor.execute(_LET_GO, this)
    app_id, user_id, grant_hash, month, model, reserved, reserved_at, request_id, *payer = found
    if grant_hash is None:
        totals, billed = rules.settle(_totals(payer[:2]), reserved, outcome.cost)
        _write_totals(cursor, app_id, user_id, month, totals)
    else:
        before = cast("Grant", _grant(payer[2:]))
        after, billed = rules.settle_grant(
            before, reserved, outcome.cost, generated=outcome.generated
        )
        _write_grant(cursor, grant_hash, after)
    cursor.execute(
        _BILL,
        {
            "reservation_id": reservation_id,
            "reserved_at": reserved_at,
            "settled_at": seconds(now),
            "app_id": app_id,
            "user_id": user_id,
            "grant_hash": grant_hash,
            "month": month,
            "model": model,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "reserved_nanos": reserved,
            "billed_nanos": billed,
            "claimed_nanos": outcome.claimed,
            "ended": outcome.ended,
            "request_id": request_id,
        },
    )
    if not outcome.generated:
        # Nothing came of the call, so that its key may be used again.
        cursor.execute(_FREE_KEY, this)
    return billed


def begin(cursor: sqlite3.Cursor, holder: str, lease: float, now: datetime) -> Renewal:
    """Begin a process's lease."""
    cursor.execute(_BEGIN, {"holder": holder, "until_ms": milliseconds(now, lease)})
    return Renewal(held=True)


def renew(
    cursor: sqlite3.Cursor,
    holder: str,
    metered: Sequence[Metered],
    lease: float,
    now: datetime,
) -> Renewal:
    """Prolong a process's lease, and note what its streams have cost. One that has run out is not
    prolonged: somebody may be settling its calls already."""
    until = {"now_ms": milliseconds(now), "until_ms": milliseconds(now, lease)}
    if not cursor.execute(_RENEW, {"holder": holder, **until}).rowcount:
        return Renewal(held=False)
    if metered:
        cursor.executemany(
            _RECORD,
            [
                {
                    "id": each.reservation_id,
                    "holder": holder,
                    "cost": min(each.cost, MAX_INTEGER),
                    "prompt": each.prompt_tokens,
                    "completion": each.completion_tokens,
                }
                for each in metered
            ],
        )
    revoked = cursor.execute(_REVOKED, {"holder": holder})
    return Renewal(held=True, revoked=frozenset(row[0] for row in revoked))


def account(
    cursor: sqlite3.Cursor, app_id: str, user_id: str, now: datetime
) -> tuple[Connection | None, Totals]:
    """A user's connection, and this month's totals."""
    asked = {"app_id": app_id, "user_id": user_id, "month": rules.month_of(now)}
    found = cursor.execute(_ACCOUNT, asked).fetchone()
    return (None, Totals()) if found is None else _account(found)


def app_by_id(cursor: sqlite3.Cursor, app_id: str) -> App | None:
    """The app with this id."""
    found = cursor.execute(_APP, {"app_id": app_id}).fetchone()
    return None if found is None else App(*found)


def _prior(cursor: sqlite3.Cursor, order: Order, at: int) -> Prior | None:
    since = {"since": at - rules.KEY_SECONDS}
    found = cursor.execute(_PRIOR, _key(order) | since).fetchone()
    return None if found is None else Prior(*found)


def _key(order: Order) -> dict[str, Any]:
    assert order.key is not None
    return {"app_id": order.app_id, "payer": order.payer, "key_hash": order.key.name}


def _account(row: Sequence[Any]) -> tuple[Connection | None, Totals]:
    cap, connected, revocations, *totals = row
    if connected is None:
        return None, _totals(totals)
    return Connection(cap, bool(connected), revocations), _totals(totals)


def _totals(row: Sequence[Any]) -> Totals:
    billed, reserved = row
    return Totals() if billed is None else Totals(billed, reserved)


def _grant(row: Sequence[Any]) -> Grant | None:
    requests, cap, expires_at, *totals = row
    return None if requests is None else Grant(requests, cap, expires_at, _totals(totals))


def _write_totals(
    cursor: sqlite3.Cursor, app_id: str, user_id: str | None, month: str, totals: Totals
) -> None:
    cursor.execute(
        _WRITE_TOTALS,
        {
            "app_id": app_id,
            "user_id": user_id,
            "month": month,
            "billed_nanos": totals.billed,
            "reserved_nanos": totals.reserved,
        },
    )


def _write_grant(cursor: sqlite3.Cursor, grant_hash: str, grant: Grant) -> None:
    cursor.execute(
        _WRITE_GRANT,
        {
            "grant_hash": grant_hash,
            "requests": grant.requests,
            "billed": grant.totals.billed,
            "reserved": grant.totals.reserved,
        },
    )


# The statements. Every value is a named parameter: a literal would be one that nobody fills in.

_DIALECT = sqlite.dialect(paramstyle="named")


def _text(statement: ClauseElement) -> str:
    return str(statement.compile(dialect=_DIALECT))


def _insert(table: Table, *columns: str) -> Any:
    return sqlite.insert(table).values({name: bindparam(name) for name in columns})


def _upsert(table: Table, *columns: str) -> str:
    """A row that is new, or takes the place of the one with its primary key."""
    new = _insert(table, *table.primary_key.columns.keys(), *columns)
    values = {name: new.excluded[name] for name in columns}
    keys = list(table.primary_key)
    return _text(new.on_conflict_do_update(index_elements=keys, set_=values))


_apps, _holders, _keys = schema.apps.c, schema.holders.c, schema.idempotency.c
_users, _sums, _grants = schema.connections.c, schema.totals.c, schema.grants.c
_calls, _rows = schema.reservations.c, schema.ledger.c

_USER_COLUMNS = (
    _users.cap_nanos,
    _users.connected,
    _users.revocations,
    _sums.billed_nanos,
    _sums.reserved_nanos,
)
_GRANT_COLUMNS = (
    _grants.requests_left,
    _grants.cap_nanos,
    _grants.expires_at,
    _grants.billed_nanos,
    _grants.reserved_nanos,
)
_THIS_APP: BindParameter[str] = bindparam("app_id")
_THIS_USER: BindParameter[str] = bindparam("user_id")
_THIS_CALL = _calls.id == bindparam("id")
_IS_USER = and_(_users.app_id == _THIS_APP, _users.user_id == _THIS_USER)
_IS_SUM = and_(
    _sums.app_id == _THIS_APP, _sums.user_id == _THIS_USER, _sums.month == bindparam("month")
)
_IS_HELD = and_(_holders.id == bindparam("holder"), _holders.expires_at_ms > bindparam("now_ms"))
_THIS_KEY = and_(
    _keys.app_id == _THIS_APP,
    _keys.payer == bindparam("payer"),
    _keys.key_hash == bindparam("key_hash"),
)

_APP = _text(
    select(_apps.id, _apps.name, _apps.mode, _apps.secret_hash, _apps.publishable_key).where(
        _apps.id == _THIS_APP
    )
)
_ACCOUNT = _text(
    select(*_USER_COLUMNS)
    .select_from(schema.connections.outerjoin(schema.totals, _IS_SUM))
    .where(_IS_USER)
)
# No row at all: the process does not hold its calls any more.
_PAYING_USER = _text(
    select(*_USER_COLUMNS)
    .select_from(
        schema.holders.outerjoin(schema.connections, _IS_USER).outerjoin(schema.totals, _IS_SUM)
    )
    .where(_IS_HELD)
)
_PAYING_GRANT = _text(
    select(*_GRANT_COLUMNS)
    .select_from(
        schema.holders.outerjoin(
            schema.grants,
            and_(_grants.token_hash == bindparam("grant_hash"), _grants.app_id == _THIS_APP),
        )
    )
    .where(_IS_HELD)
)
_HELD = _text(
    select(
        _calls.app_id,
        _calls.user_id,
        _calls.grant_hash,
        _calls.month,
        _calls.model,
        _calls.reserved_nanos,
        _calls.reserved_at,
        _calls.request_id,
        _sums.billed_nanos,
        _sums.reserved_nanos,
        *_GRANT_COLUMNS,
    )
    .select_from(
        schema.reservations.outerjoin(
            schema.totals,
            and_(
                _sums.app_id == _calls.app_id,
                _sums.user_id == _calls.user_id,
                _sums.month == _calls.month,
            ),
        ).outerjoin(
            schema.grants,
            and_(_grants.token_hash == _calls.grant_hash, _grants.app_id == _calls.app_id),
        )
    )
    .where(_THIS_CALL)
)
_LET_GO = _text(delete(schema.reservations).where(_THIS_CALL))
_HOLD = _text(
    _insert(
        schema.reservations,
        "id",
        "app_id",
        "user_id",
        "grant_hash",
        "month",
        "model",
        "reserved_nanos",
        "reserved_at",
        "request_id",
        "holder",
        "stream",
        "revocations",
    )
)
_BILL = _text(_insert(schema.ledger, *(each.name for each in _rows if each is not _rows.id)))
_WRITE_TOTALS = _upsert(schema.totals, "billed_nanos", "reserved_nanos")
_WRITE_GRANT = _text(
    update(schema.grants)
    .where(_grants.token_hash == bindparam("grant_hash"))
    .values(
        requests_left=bindparam("requests"),
        billed_nanos=bindparam("billed"),
        reserved_nanos=bindparam("reserved"),
    )
)
_PRIOR = _text(
    select(_keys.body_hash, _rows.ended)
    .select_from(
        schema.idempotency.outerjoin(schema.ledger, _rows.reservation_id == _keys.reservation_id)
    )
    .where(_THIS_KEY, _keys.created_at > bindparam("since"))
)
_WRITE_KEY = _upsert(schema.idempotency, "body_hash", "reservation_id", "created_at")
_FREE_KEY = _text(delete(schema.idempotency).where(_keys.reservation_id == bindparam("id")))
_BEGIN = _text(
    sqlite.insert(schema.holders).values(
        id=bindparam("holder"), expires_at_ms=bindparam("until_ms")
    )
)
_RENEW = _text(update(schema.holders).where(_IS_HELD).values(expires_at_ms=bindparam("until_ms")))
_RECORD = _text(
    update(schema.reservations)
    .where(_THIS_CALL, _calls.holder == bindparam("holder"))
    .values(
        metered_nanos=bindparam("cost"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
    )
)
_REVOKED = _text(
    select(_calls.id)
    .select_from(
        schema.reservations.join(
            schema.connections,
            and_(_users.app_id == _calls.app_id, _users.user_id == _calls.user_id),
        )
    )
    .where(_calls.holder == bindparam("holder"), _calls.revocations != _users.revocations)
)
