"""Apps, connections and grants in SQL, for any database: each function reads, asks the rules and
writes, inside the one transaction of the connection that it is given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import Row, and_, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from . import rules, schema
from .keys import App
from .orders import Order, Outcome
from .rules import Connection, Grant, Terms, Totals

__all__ = ["Order", "Outcome"]


def add_app(sql: Sql, app: App, now: datetime) -> None:
    """Keep a new app."""
    sql.execute(
        insert(schema.apps).values(
            id=app.id,
            name=app.name,
            mode=app.mode,
            secret_hash=app.secret_hash,
            publishable_key=app.publishable_key,
            created_at=seconds(now),
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
    sql.execute(_upsert(sql, table).values(name=name, value=fresh).on_conflict_do_nothing())
    return sql.execute(select(table.c.value).where(table.c.name == name)).scalar_one()


def connect(sql: Sql, app_id: str, user_id: str, cap: int | None, now: datetime) -> None:
    """Connect a user's budget, or change its cap."""
    table = schema.connections
    # One statement: two approvals at once must not both take the user for a new one.
    values = {"cap_nanos": cap, "connected": True, "changed_at": seconds(now)}
    sql.execute(
        _upsert(sql, table)
        .values(app_id=app_id, user_id=user_id, **values)
        .on_conflict_do_update(index_elements=["app_id", "user_id"], set_=values)
    )


def revoke(sql: Sql, app_id: str, user_id: str, now: datetime) -> None:
    """Take a connection back. What the user was billed stays."""
    table = schema.connections
    sql.execute(
        update(table)
        .where(table.c.app_id == app_id, table.c.user_id == user_id, table.c.connected)
        .values(connected=False, revocations=table.c.revocations + 1, changed_at=seconds(now))
    )


def account(sql: Sql, app_id: str, user_id: str, now: datetime) -> tuple[Connection | None, Totals]:
    """A user's connection, and this month's totals."""
    month = rules.month_of(now)
    return connection(sql, app_id, user_id), totals_of(sql, app_id, user_id, month)


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
    row = one(
        sql.execute(
            select(table).where(table.c.token_hash == token_hash, table.c.app_id == app_id)
        ).first()
    )
    if row is None:
        return None
    totals = Totals(row.billed_nanos, row.reserved_nanos)
    return Grant(row.requests_left, row.cap_nanos, row.expires_at, totals)


def _app(sql: Sql, where: Any) -> App | None:
    row = one(sql.execute(select(schema.apps).where(where)).first())
    if row is None:
        return None
    return App(row.id, row.name, row.mode, row.secret_hash, row.publishable_key)


def connection(sql: Sql, app_id: str, user_id: str) -> Connection | None:
    """A user's connection."""
    table = schema.connections
    row = one(
        sql.execute(
            select(table).where(table.c.app_id == app_id, table.c.user_id == user_id)
        ).first()
    )
    return None if row is None else Connection(row.cap_nanos, row.connected, row.revocations)


def totals_of(sql: Sql, app_id: str, user_id: str, month: str) -> Totals:
    """A user's totals of a month."""
    table = schema.totals
    row = one(
        sql.execute(
            select(table).where(
                table.c.app_id == app_id, table.c.user_id == user_id, table.c.month == month
            )
        ).first()
    )
    return Totals() if row is None else Totals(row.billed_nanos, row.reserved_nanos)


def write_totals(sql: Sql, app_id: str, user_id: str, month: str, totals: Totals) -> None:
    """Keep what :func:`totals_of` will say."""
    table = schema.totals
    values = {"billed_nanos": totals.billed, "reserved_nanos": totals.reserved}
    key = {"app_id": app_id, "user_id": user_id, "month": month}
    where = and_(*(table.c[name] == value for name, value in key.items()))
    if not sql.execute(update(table).where(where).values(values)).rowcount:
        sql.execute(insert(table).values(**key, **values))


def write_grant(sql: Sql, token_hash: str, grant: Grant) -> None:
    """Keep what :func:`grant` will say."""
    table = schema.grants
    sql.execute(update(table).where(table.c.token_hash == token_hash).values(**_grant_row(grant)))


def _grant_row(grant: Grant) -> dict[str, int]:
    return {
        "requests_left": grant.requests,
        "cap_nanos": grant.cap,
        "billed_nanos": grant.totals.billed,
        "reserved_nanos": grant.totals.reserved,
    }


def one(row: Row[*tuple[Any, ...]] | None) -> Any:
    """The row, whose columns are attributes that only the database knows."""
    return row


def seconds(moment: datetime) -> int:
    """Unix seconds."""
    return int(moment.timestamp())


def _upsert(sql: Sql, table: Any) -> Any:
    # ON CONFLICT is the same in both, under two names.
    make: Any = sqlite.insert if sql.dialect.name == "sqlite" else postgresql.insert
    return make(table)


def utc_now() -> datetime:
    """The clock of the service, in UTC."""
    return datetime.now(UTC)
