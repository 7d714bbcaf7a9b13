"""Apps, connections and grants in SQL, for any database.

Each function reads rows, applies the rules and writes, inside the transaction of its connection.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table, bindparam, case, func, insert, select, update
from sqlalchemy import Connection as Sql
from sqlalchemy.dialects import postgresql, sqlite

from ...errors import invalid_request
from ..records import App, GrantBudget, Terms, Totals
from . import rules, schema
from .clock import seconds


def add_app(sql: Sql, app: App, now: datetime) -> None:
    """Store a new app."""
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
    """The app with this publishable key."""
    table = schema.apps
    in_use = (table.c.publishable_key == key, table.c.deleted_at.is_(None))
    row = sql.execute(select(table).where(*in_use)).mappings().first()
    return None if row is None else App(*(row[name] for name in App.__struct_fields__))


def lock_app(sql: Sql, app_id: str, *, alone: bool = False) -> None:
    """Lock an app until the end of the transaction, so that it cannot be deleted.

    Each transaction takes its locks in this order: the payer, approvals, the app, funding,
    connections, grants. It locks rows of the same table in the order of their keys. So there are no
    deadlocks. A call inserts rows with a foreign key to the app while it holds a lock on its
    connection or its grant. PostgreSQL then also locks the app, against this order. So the lock of
    this function does not block that one.

    Args:
        alone: True to allow only one transaction at a time for this app.

    Raises:
        WattfareError: ``invalid_request``, 409; the app is deleted.
    """
    table = schema.apps
    wanted = select(table.c.id).where(table.c.id == app_id, table.c.deleted_at.is_(None))
    locked = wanted.with_for_update(key_share=alone, read=not alone)
    if sql.execute(locked).first() is None:
        raise invalid_request("The app is deleted.", 409)


def lock_payer(
    sql: Sql, payer_id: str, *, alone: bool = False
) -> Literal["unknown", "active", "deleted"]:
    """Lock a payer until the end of the transaction, so that their data cannot be deleted.

    Args:
        alone: True to allow only one transaction at a time for this payer.

    Returns: ``deleted`` if the data was deleted before; ``unknown`` if there is no such payer yet.
    """
    table = schema.payers
    wanted = select(table.c.deleted_at).where(table.c.id == payer_id)
    found = sql.execute(wanted.with_for_update(key_share=alone, read=not alone)).first()
    if found is None:
        return "unknown"
    return "active" if found.deleted_at is None else "deleted"


def check_payer(sql: Sql, payer_id: str, *, alone: bool = False) -> None:
    """Lock a payer, before anything is stored for them. Their data may have been deleted since the
    sign-in of the request was checked.

    Raises:
        WattfareError: ``invalid_request``, 403; the payer's data was deleted.
    """
    if lock_payer(sql, payer_id, alone=alone) != "active":
        raise invalid_request("Your data here was deleted, so nothing was changed.", 403)


def lock_rows(sql: Sql, table: Table, *where: ColumnElement[bool]) -> None:
    """Lock these rows in the order of their keys, before a statement that changes all of them."""
    keys = table.primary_key.columns
    sql.execute(select(*keys).where(*where).order_by(*keys).with_for_update()).all()


def setting(sql: Sql, name: str, fresh: bytes) -> bytes:
    """The value stored under this name. If there is none, store ``fresh`` and return it."""
    table = schema.settings
    sql.execute(_upsert(sql, table).values(name=name, value=fresh).on_conflict_do_nothing())
    return sql.execute(select(table.c.value).where(table.c.name == name)).scalar_one()


def note_health(sql: Sql, now: datetime) -> None:
    """Write an unused row, to check whether the database accepts writes."""
    value = str(seconds(now)).encode()
    sql.execute(
        _upsert(sql, schema.settings)
        .values(name="health", value=value)
        .on_conflict_do_update(index_elements=["name"], set_={"value": value})
    )


def connect(
    sql: Sql,
    app_id: str,
    user_id: str,
    cap: int | None,
    epoch: int | None,
    now: datetime,
    *,
    payer_id: str = "",
    funding_id: str | None = None,
    label: str | None = None,
) -> bool:
    """Connect a user's budget, or change its cap, payer and funding. Returns False and changes
    nothing if the connection was revoked after ``epoch``.

    A new payer replaces the previous one. Calls in flight of the previous payer are cut off.

    Args:
        epoch: the number of revocations that the connection must have; None accepts any.
        payer_id: the person whose budget it is; ``""`` for none.
        funding_id: the funding that pays. None for the operator's key.
        label: the account's label, which the payer sees. None does not change it.

    Raises:
        WattfareFundingError: the payer has no such funding, or it is not valid.
        WattfareError: ``invalid_request``, 409; the app is deleted.
    """
    lock_app(sql, app_id)
    check_funding(sql, payer_id, funding_id)
    table = schema.connections
    # One statement, so that two concurrent approvals cannot both create the connection.
    new = _upsert(sql, table).values(
        app_id=app_id,
        user_id=user_id,
        cap_nanos=cap,
        connected=True,
        changed_at=seconds(now),
        payer_id=payer_id,
        funding_id=funding_id,
    )
    names = ("cap_nanos", "connected", "changed_at", "payer_id", "funding_id")
    values: dict[str, Any] = {name: new.excluded[name] for name in names}
    replaced = case((table.c.payer_id != new.excluded.payer_id, 1), else_=0)
    values["revocations"] = table.c.revocations + replaced
    written = sql.execute(
        new.on_conflict_do_update(
            index_elements=["app_id", "user_id"],
            set_=values,
            where=None if epoch is None else table.c.revocations == epoch,
        ).returning(table.c.app_id)
    )
    if written.first() is None:
        return False
    _end_payer_connections(
        sql, now, "replaced", app_id=app_id, user_id=user_id, other_than=payer_id
    )
    if payer_id:
        _begin_payer_connection(sql, payer_id, app_id, user_id, cap, label, now)
    return True


def change_cap(
    sql: Sql,
    app_id: str,
    user_id: str,
    cap: int | None,
    now: datetime,
    *,
    epoch: int | None = None,
    payer_id: str | None = None,
    only_lower: bool = False,
) -> bool:
    """Change the cap of a connection. Its payer and funding stay. Returns False and changes nothing
    if there is no such connection.

    Args:
        epoch: the number of revocations that the connection must have; None accepts any.
        payer_id: the payer of the connection; None accepts any.
        only_lower: True to ignore a higher cap. The function then returns True.
    """
    table = schema.connections
    this = [table.c.app_id == app_id, table.c.user_id == user_id, table.c.connected]
    if epoch is not None:
        this.append(table.c.revocations == epoch)
    if payer_id is not None:
        this.append(table.c.payer_id == payer_id)
    found = sql.execute(
        select(table.c.cap_nanos, table.c.payer_id).where(*this).with_for_update()
    ).first()
    if found is None:
        return False
    if only_lower:
        cap = rules.least_of(cap, found.cap_nanos)
    sql.execute(update(table).where(*this).values(cap_nanos=cap, changed_at=seconds(now)))
    seen = schema.payer_connections
    sql.execute(
        update(seen)
        .where(
            seen.c.payer_id == found.payer_id,
            seen.c.app_id == app_id,
            seen.c.user_id == user_id,
            seen.c.ended_at.is_(None),
        )
        .values(cap_nanos=cap)
    )
    return True


def change_funding(sql: Sql, app_id: str, user_id: str, payer_id: str, funding: str | None) -> None:
    """Change the funding that pays for a connection of this payer. The caller must have called
    :func:`check_funding`. Calls in flight are paid as before.

    Args:
        funding: its id; None for the operator's key.
    """
    table = schema.connections
    this = (table.c.app_id == app_id, table.c.user_id == user_id, table.c.payer_id == payer_id)
    sql.execute(update(table).where(*this, table.c.connected).values(funding_id=funding))


def revoke(
    sql: Sql, app_id: str, user_id: str, now: datetime, *, payer_id: str | None = None
) -> bool:
    """Revoke a connection. Its bills stay. Returns False if there is no such connection.

    Args:
        payer_id: the payer of the connection; None accepts any.
    """
    table = schema.connections
    this = [table.c.app_id == app_id, table.c.user_id == user_id]
    if payer_id is not None:
        this.append(table.c.payer_id == payer_id)
    revoked = _revoke_where(sql, now, *this)
    if revoked:
        _end_payer_connections(sql, now, "revoked", app_id=app_id, user_id=user_id)
    return revoked > 0


def revoke_app(sql: Sql, app_id: str, now: datetime) -> None:
    """Revoke all connections and grants of an app."""
    users, grants = schema.connections, schema.grants
    connected = users.c.app_id == app_id, users.c.connected
    lock_rows(sql, users, *connected)
    _revoke_where(sql, now, *connected)
    _end_payer_connections(sql, now, "revoked", app_id=app_id)
    lock_rows(sql, grants, grants.c.app_id == app_id)
    _take_grants_back(sql, grants.c.app_id == app_id)


def revoke_grant(sql: Sql, app_id: str, token_hash: str, *, payer_id: str | None = None) -> bool:
    """Revoke a grant. Its calls in flight are cut off. Returns False if there is no such grant.

    Args:
        payer_id: the payer of the grant; None accepts any.
    """
    table = schema.grants
    this = [table.c.token_hash == token_hash, table.c.app_id == app_id]
    if payer_id is not None:
        this.append(table.c.payer_id == payer_id)
    return _take_grants_back(sql, *this) > 0


def remove_funding(sql: Sql, payer_id: str, funding_id: str, now: datetime) -> bool:
    """Delete the key of a funding, and revoke the connections and grants that it pays for. Their
    calls in flight are cut off. Returns False if the payer has no such funding."""
    table, users = schema.funding, schema.connections
    # Lock the funding first. A concurrent new connection waits for this lock, or is found below.
    removed = sql.execute(
        update(table)
        .where(table.c.id == funding_id, table.c.payer_id == payer_id, table.c.state != "removed")
        .values(ciphertext=None, encryption_key_id=None, state="removed", checked_at=seconds(now))
    )
    if not removed.rowcount:
        return False
    paid = users.c.funding_id == funding_id, users.c.payer_id == payer_id
    pairs = select(users.c.app_id, users.c.user_id).where(*paid, users.c.connected)
    for app_id, user_id in sql.execute(pairs.order_by(users.c.app_id, users.c.user_id)).all():
        this = (users.c.app_id == app_id, users.c.user_id == user_id, *paid)
        if _revoke_where(sql, now, *this):
            _end_payer_connections(sql, now, "removed", app_id=app_id, user_id=user_id)
    paid_grants = schema.grants.c.funding_id == funding_id
    lock_rows(sql, schema.grants, paid_grants)
    _take_grants_back(sql, paid_grants)
    return True


def check_funding(sql: Sql, payer_id: str, funding_id: str | None) -> None:
    """Lock a funding until the end of the transaction. None, the operator's key, needs no lock.

    Raises:
        WattfareFundingError: the payer has no such funding, or it is not valid.
    """
    if funding_id is None:
        return
    table = schema.funding
    # Lock the funding, so that it cannot be removed before the connection exists.
    found = sql.execute(
        select(table.c.state)
        .where(table.c.id == funding_id, table.c.payer_id == payer_id)
        .with_for_update(read=True)
    ).first()
    if found is None or found.state != "valid":
        raise rules.refused_funding()


def _revoke_where(sql: Sql, now: datetime, *where: ColumnElement[bool]) -> int:
    table = schema.connections
    return sql.execute(
        update(table)
        .where(*where, table.c.connected)
        .values(connected=False, revocations=table.c.revocations + 1, changed_at=seconds(now))
    ).rowcount


def _take_grants_back(sql: Sql, *where: ColumnElement[bool]) -> int:
    taken = update(schema.grants).where(*where).values(expires_at=schema.TAKEN_BACK)
    return sql.execute(taken).rowcount


def _begin_payer_connection(
    sql: Sql,
    payer_id: str,
    app_id: str,
    user_id: str,
    cap: int | None,
    label: str | None,
    now: datetime,
) -> None:
    table = schema.payer_connections
    new = _upsert(sql, table).values(
        payer_id=payer_id,
        app_id=app_id,
        user_id=user_id,
        account_label=label,
        cap_nanos=cap,
        connected_at=seconds(now),
    )
    sql.execute(
        new.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={
                "account_label": func.coalesce(new.excluded.account_label, table.c.account_label),
                "cap_nanos": cap,
                # A change of the cap does not start a new connection.
                "connected_at": case(
                    (table.c.ended_at.is_(None), table.c.connected_at),
                    else_=new.excluded.connected_at,
                ),
                "ended_at": None,
                "ended": None,
            },
        )
    )


def _end_payer_connections(
    sql: Sql,
    now: datetime,
    ended: Literal["revoked", "replaced", "removed"],
    *,
    app_id: str,
    user_id: str | None = None,
    other_than: str | None = None,
) -> None:
    table = schema.payer_connections
    this = [table.c.app_id == app_id, table.c.ended_at.is_(None)]
    if user_id is not None:
        this.append(table.c.user_id == user_id)
    if other_than is not None:
        this.append(table.c.payer_id != other_than)
    sql.execute(update(table).where(*this).values(ended_at=seconds(now), ended=ended))


def grant(sql: Sql, app_id: str, token_hash: str | None) -> GrantBudget | None:
    """The grant with this token."""
    table, funding = schema.grants, schema.funding
    row = sql.execute(
        select(table, funding.c.state)
        .select_from(table.outerjoin(funding, funding.c.id == table.c.funding_id))
        .where(table.c.token_hash == token_hash, table.c.app_id == app_id)
    ).first()
    if row is None:
        return None
    return GrantBudget(
        row.requests_left,
        row.cap_nanos,
        row.expires_at,
        Totals(row.billed_nanos, row.reserved_nanos),
        row.payer_id,
        row.funding_id,
        rules.is_funding_valid(row.funding_id, row.state),
    )


def add_grant(
    sql: Sql, app_id: str, token_hash: str, grant: GrantBudget, terms: Terms, now: int
) -> None:
    """Store a new grant, or raise an error if the rules refuse it."""
    operator_pays = rules.operator_pays(grant.funding_id, terms)
    # One at a time for each app. Otherwise, two concurrent grants could both fit under the ceiling.
    lock_app(sql, app_id, alone=operator_pays)
    check_funding(sql, grant.payer_id, grant.funding_id)
    held = 0
    if operator_pays:  # otherwise the sum is not needed
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
            payer_id=grant.payer_id,
            funding_id=grant.funding_id,
        )
    )


_HELD_BY_GRANTS = select(func.coalesce(func.sum(schema.grants.c.cap_nanos), 0)).where(
    schema.grants.c.app_id == bindparam("app_id"),
    schema.grants.c.expires_at > bindparam("now"),
    schema.grants.c.funding_id.is_(None),
)


def _upsert(sql: Sql, table: Any) -> Any:
    # Both databases have ON CONFLICT, but SQLAlchemy has a separate `insert` for each.
    make: Any = sqlite.insert if sql.dialect.name == "sqlite" else postgresql.insert
    return make(table)
