"""Apps, connections and grants in SQL, for any database: each function reads, asks the rules and
writes, inside the one transaction of the connection that it is given."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ..records import App, GrantBudget, Terms, Totals
from . import rules, schema
from .clock import seconds


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


def app_by_publishable_key(sql: Sql, key: str) -> App | None:
    """The app that this publishable key names."""
    table = schema.apps
    in_use = (table.c.publishable_key == key, table.c.deleted_at.is_(None))
    row = sql.execute(select(table).where(*in_use)).mappings().first()
    return None if row is None else App(*(row[name] for name in App.__struct_fields__))


def setting(sql: Sql, name: str, fresh: bytes) -> bytes:
    """What is kept under this name; ``fresh``, from now on, where nothing is."""
    table = schema.settings
    sql.execute(_upsert(sql, table).values(name=name, value=fresh).on_conflict_do_nothing())
    return sql.execute(select(table.c.value).where(table.c.name == name)).scalar_one()


def note_health(sql: Sql, now: datetime) -> None:
    """Write a row that nobody reads, to see whether the database takes it."""
    value = str(seconds(now)).encode()
    sql.execute(
        _upsert(sql, schema.settings)
        .values(name="health", value=value)
        .on_conflict_do_update(index_elements=["name"], set_={"value": value})
    )


def connect(
    sql: Sql, app_id: str, user_id: str, cap: int | None, epoch: int | None, now: datetime
) -> bool:
    """Connect a user's budget, or change its cap. False, and nothing has changed: the connection
    has been revoked since this epoch. None is any epoch."""
    table = schema.connections
    # One statement: two approvals at once must not both take the user for a new one.
    values = {"cap_nanos": cap, "connected": True, "changed_at": seconds(now)}
    written = sql.execute(
        _upsert(sql, table)
        .values(app_id=app_id, user_id=user_id, **values)
        .on_conflict_do_update(
            index_elements=["app_id", "user_id"],
            set_=values,
            where=None if epoch is None else table.c.revocations == epoch,
        )
        .returning(table.c.app_id)
    )
    return written.first() is not None


def revoke(sql: Sql, app_id: str, user_id: str, now: datetime) -> None:
    """Take a connection back. What the user was billed stays."""
    table = schema.connections
    sql.execute(
        update(table)
        .where(table.c.app_id == app_id, table.c.user_id == user_id, table.c.connected)
        .values(connected=False, revocations=table.c.revocations + 1, changed_at=seconds(now))
    )


def grant(sql: Sql, app_id: str, token_hash: str | None) -> GrantBudget | None:
    """The grant with this token."""
    table = schema.grants
    row = sql.execute(
        select(table).where(table.c.token_hash == token_hash, table.c.app_id == app_id)
    ).first()
    if row is None:
        return None
    totals = Totals(row.billed_nanos, row.reserved_nanos)
    return GrantBudget(row.requests_left, row.cap_nanos, row.expires_at, totals)


def add_grant(
    sql: Sql, app_id: str, token_hash: str, grant: GrantBudget, terms: Terms, now: int
) -> None:
    """Keep a new grant; raises the refusal."""
    held = 0
    if terms.operator_pays:  # else nobody asks what they hold
        # One at a time for each app: two that look at once would both see the room for one.
        locked = select(schema.apps.c.id).where(schema.apps.c.id == app_id).with_for_update()
        sql.execute(locked).all()
        held = sql.execute(_HELD_BY_GRANTS, {"app_id": app_id, "now": now}).scalar_one()
    grant = rules.admit_grant(int(held), grant, terms)
    sql.execute(
        insert(schema.grants).values(
            token_hash=token_hash,
            app_id=app_id,
            requests_left=grant.requests,
            cap_nanos=grant.cap,
            expires_at=grant.expires_at,
            billed_nanos=grant.totals.billed,
            reserved_nanos=grant.totals.reserved,
        )
    )


_HELD_BY_GRANTS = select(func.coalesce(func.sum(schema.grants.c.cap_nanos), 0)).where(
    schema.grants.c.app_id == bindparam("app_id"), schema.grants.c.expires_at > bindparam("now")
)


def _upsert(sql: Sql, table: Any) -> Any:
    # ON CONFLICT is the same in both, under two names.
    make: Any = sqlite.insert if sql.dialect.name == "sqlite" else postgresql.insert
    return make(table)
