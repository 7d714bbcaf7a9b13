"""The ledger in SQL: each function reads, asks the rules and writes, inside the one transaction
of the connection that it is given. Totals change with the rows that they sum up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import Row, and_, delete, func, insert, select, update

from . import rules, schema
from .keys import App
from .rules import Bounds, Connection, Grant, Terms, Totals


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks for its reservation. Who pays is a user or a grant, never both."""

    id: str
    app_id: str
    user_id: str | None = None
    grant_hash: str | None = None
    model: str
    bounds: Bounds
    request_id: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. ``generated``: did the model do anything at all?"""

    ended: str
    generated: bool = False
    cost: int = 0
    claimed: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def add_app(sql: Sql, app: App, now: datetime) -> None:
    """Keep a new app."""
    sql.execute(
        insert(schema.apps).values(
            id=app.id,
            name=app.name,
            mode=app.mode,
            secret_hash=app.secret_hash,
            publishable_key=app.publishable_key,
            created_at=_seconds(now),
        )
    )


def app_by_id(sql: Sql, app_id: str) -> App | None:
    """The app with this id."""
    return _app(sql, schema.apps.c.id == app_id)


def app_by_publishable_key(sql: Sql, key: str) -> App | None:
    """The app that this publishable key names."""
    return _app(sql, schema.apps.c.publishable_key == key)


def setting(sql: Sql, name: str, fresh: bytes) -> bytes:
    """What is kept under this name; ``fresh``, from now on, where nothing is."""
    table = schema.settings
    kept = sql.execute(select(table.c.value).where(table.c.name == name)).scalar()
    if kept is None:
        sql.execute(insert(table).values(name=name, value=fresh))
    return fresh if kept is None else kept


def connect(sql: Sql, app_id: str, user_id: str, cap: int | None, now: datetime) -> None:
    """Connect a user's budget, or change its cap."""
    _write_connection(sql, app_id, user_id, Connection(cap), now)


def revoke(sql: Sql, app_id: str, user_id: str, now: datetime) -> None:
    """Take a connection back. What the user was billed stays."""
    connection = _connection(sql, app_id, user_id)
    if connection is not None:
        revoked = msgspec.structs.replace(connection, connected=False)
        _write_connection(sql, app_id, user_id, revoked, now)


def account(sql: Sql, app_id: str, user_id: str, now: datetime) -> tuple[Connection | None, Totals]:
    """A user's connection, and this month's totals."""
    month = rules.month_of(now)
    return _connection(sql, app_id, user_id), _totals(sql, app_id, user_id, month)


def add_grant(sql: Sql, app_id: str, token_hash: str, grant: Grant, terms: Terms, now: int) -> None:
    """Keep a new grant; raises the refusal."""
    if terms.operator_pays:
        # One at a time for each app: two that look at once would both see the room for one.
        locked = select(schema.apps.c.id).where(schema.apps.c.id == app_id).with_for_update()
        sql.execute(locked).all()
    table = schema.grants
    held = sql.execute(
        select(func.coalesce(func.sum(table.c.cap_nanos), 0)).where(
            table.c.app_id == app_id, table.c.expires_at > now
        )
    ).scalar_one()
    rules.admit_grant(int(held), grant, terms)
    sql.execute(
        insert(schema.grants).values(
            token_hash=token_hash, app_id=app_id, expires_at=grant.expires_at, **_grant_row(grant)
        )
    )


def grant(sql: Sql, app_id: str, token_hash: str) -> Grant | None:
    """The app's grant with this token; another app's is unknown."""
    table = schema.grants
    row = _one(
        sql.execute(
            select(table).where(table.c.token_hash == token_hash, table.c.app_id == app_id)
        ).first()
    )
    if row is None:
        return None
    totals = Totals(row.billed_nanos, row.reserved_nanos)
    return Grant(row.requests_left, row.cap_nanos, row.expires_at, totals)


def reserve(sql: Sql, order: Order, terms: Terms, now: datetime) -> int:
    """Reserve what the call may cost, and say how much that is.

    Raises:
        WattfareError: the refusal, as the rules give it; nothing has changed.
    """
    month = rules.month_of(now)
    if order.grant_hash is not None:
        before = grant(sql, order.app_id, order.grant_hash)
        after, granted = rules.reserve_grant(before, order.bounds, _seconds(now))
        _write_grant(sql, order.grant_hash, after)
    else:
        user_id = cast("str", order.user_id)
        connection = _connection(sql, order.app_id, user_id)
        totals = _totals(sql, order.app_id, user_id, month)
        totals, granted = rules.reserve(connection, totals, order.bounds, terms)
        _write_totals(sql, order.app_id, user_id, month, totals)
    sql.execute(
        insert(schema.reservations).values(
            id=order.id,
            app_id=order.app_id,
            user_id=order.user_id,
            grant_hash=order.grant_hash,
            month=month,
            model=order.model,
            reserved_nanos=granted,
            reserved_at=_seconds(now),
            request_id=order.request_id,
        )
    )
    return granted


def settle(sql: Sql, reservation_id: str, outcome: Outcome, now: datetime) -> int | None:
    """End a reservation and bill its outcome, in the month in which it was reserved.

    Returns what was billed; None where there is no such reservation (any more): settling twice
    changes nothing.
    """
    table = schema.reservations
    row = _one(sql.execute(select(table).where(table.c.id == reservation_id)).first())
    if row is None:
        return None
    sql.execute(delete(table).where(table.c.id == reservation_id))
    if row.grant_hash is not None:
        before = cast("Grant", grant(sql, row.app_id, row.grant_hash))
        after, billed = rules.settle_grant(
            before, row.reserved_nanos, outcome.cost, generated=outcome.generated
        )
        _write_grant(sql, row.grant_hash, after)
    else:
        totals = _totals(sql, row.app_id, row.user_id, row.month)
        totals, billed = rules.settle(totals, row.reserved_nanos, outcome.cost)
        _write_totals(sql, row.app_id, row.user_id, row.month, totals)
    sql.execute(
        insert(schema.ledger).values(
            reservation_id=reservation_id,
            reserved_at=row.reserved_at,
            settled_at=_seconds(now),
            app_id=row.app_id,
            user_id=row.user_id,
            grant_hash=row.grant_hash,
            month=row.month,
            model=row.model,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            reserved_nanos=row.reserved_nanos,
            billed_nanos=billed,
            claimed_nanos=outcome.claimed,
            ended=outcome.ended,
            request_id=row.request_id,
        )
    )
    return billed


def settle_abandoned(sql: Sql, now: datetime) -> int:
    """End what a process left behind that died: at its reservation, because its answer may have
    been generated. Only for a database that no other process serves. Returns how many."""
    table = schema.reservations
    left = sql.execute(select(table.c.id, table.c.reserved_nanos)).all()
    for reservation_id, reserved in left:
        outcome = Outcome(ended="abandoned", generated=True, cost=reserved)
        settle(sql, reservation_id, outcome, now)
    return len(left)


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


def _app(sql: Sql, where: Any) -> App | None:
    row = _one(sql.execute(select(schema.apps).where(where)).first())
    if row is None:
        return None
    return App(row.id, row.name, row.mode, row.secret_hash, row.publishable_key)


def _connection(sql: Sql, app_id: str, user_id: str) -> Connection | None:
    table = schema.connections
    row = _one(
        sql.execute(
            select(table).where(table.c.app_id == app_id, table.c.user_id == user_id)
        ).first()
    )
    return None if row is None else Connection(row.cap_nanos, row.connected)


def _write_connection(
    sql: Sql, app_id: str, user_id: str, connection: Connection, now: datetime
) -> None:
    table = schema.connections
    values = {
        "cap_nanos": connection.cap,
        "connected": connection.connected,
        "changed_at": _seconds(now),
    }
    where = and_(table.c.app_id == app_id, table.c.user_id == user_id)
    if not sql.execute(update(table).where(where).values(values)).rowcount:
        sql.execute(insert(table).values(app_id=app_id, user_id=user_id, **values))


def _totals(sql: Sql, app_id: str, user_id: str, month: str) -> Totals:
    table = schema.totals
    row = _one(
        sql.execute(
            select(table).where(
                table.c.app_id == app_id, table.c.user_id == user_id, table.c.month == month
            )
        ).first()
    )
    return Totals() if row is None else Totals(row.billed_nanos, row.reserved_nanos)


def _write_totals(sql: Sql, app_id: str, user_id: str, month: str, totals: Totals) -> None:
    table = schema.totals
    values = {"billed_nanos": totals.billed, "reserved_nanos": totals.reserved}
    key = {"app_id": app_id, "user_id": user_id, "month": month}
    where = and_(*(table.c[name] == value for name, value in key.items()))
    if not sql.execute(update(table).where(where).values(values)).rowcount:
        sql.execute(insert(table).values(**key, **values))


def _write_grant(sql: Sql, token_hash: str, grant: Grant) -> None:
    table = schema.grants
    sql.execute(update(table).where(table.c.token_hash == token_hash).values(**_grant_row(grant)))


def _grant_row(grant: Grant) -> dict[str, int]:
    return {
        "requests_left": grant.requests,
        "cap_nanos": grant.cap,
        "billed_nanos": grant.totals.billed,
        "reserved_nanos": grant.totals.reserved,
    }


def _one(row: Row[Any] | None) -> Any:
    # A row's columns are attributes that only the database knows.
    return row


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def utc_now() -> datetime:
    """The clock of the service, in UTC."""
    return datetime.now(UTC)
