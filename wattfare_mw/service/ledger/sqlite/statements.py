"""The SQL statements of each call in SQLite. They are written with SQLAlchemy, and compiled once to
text for the driver.

Each value is a parameter, because a literal would become a parameter without a value. The driver
takes parameters by position, which is faster than by name. Each statement lists the names of its
parameters in order.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Table,
    and_,
    bindparam,
    delete,
    func,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import sqlite

from ...records import App
from .. import schema

_DIALECT = sqlite.dialect(paramstyle="qmark")


def _text(statement: ClauseElement, *parameters: str) -> str:
    compiled: Any = statement.compile(dialect=_DIALECT)
    if tuple(compiled.positiontup) != parameters:
        raise TypeError(f"{compiled} takes {compiled.positiontup}")
    return str(compiled)


def _insert(table: Table, *columns: str) -> Any:
    return sqlite.insert(table).values({name: bindparam(name) for name in columns})


def _upsert(table: Table, *columns: str) -> str:
    """Insert a row, or replace the row with the same primary key."""
    new = _insert(table, *table.primary_key.columns.keys(), *columns)
    values = {name: new.excluded[name] for name in columns}
    keys = list(table.primary_key)
    order = (*table.primary_key.columns.keys(), *columns)
    return _text(new.on_conflict_do_update(index_elements=keys, set_=values), *order)


def _row(table: Table, *columns: str) -> str:
    """Insert a row."""
    return _text(_insert(table, *columns), *columns)


_apps, _holders, _keys = schema.apps.c, schema.holders.c, schema.idempotency.c
_users, _sums, _grants = schema.connections.c, schema.totals.c, schema.grants.c
_calls, _rows = schema.reservations.c, schema.ledger.c
_seen = schema.payer_connections.c
_funding, _operator = schema.funding.c, schema.operator_totals.c

_other = schema.totals.alias("other")
#: The spending of the other payers of a user.
_OTHERS = (
    select(func.sum(_other.c.billed_nanos + _other.c.reserved_nanos))
    .where(
        _other.c.app_id == _users.app_id,
        _other.c.user_id == _users.user_id,
        _other.c.payer_id != _users.payer_id,
        _other.c.month == bindparam("of_month"),
    )
    .scalar_subquery()
)
_USER_COLUMNS = (
    _users.cap_nanos,
    _users.connected,
    _users.revocations,
    _users.payer_id,
    _users.funding_id,
    _funding.state,
    _sums.billed_nanos,
    _sums.reserved_nanos,
)
_GRANT_COLUMNS = (
    _grants.requests_left,
    _grants.cap_nanos,
    _grants.expires_at,
    _grants.payer_id,
    _grants.funding_id,
    _funding.state,
    _grants.billed_nanos,
    _grants.reserved_nanos,
)
_THIS_APP: BindParameter[str] = bindparam("app_id")
_ANY_PAYER: BindParameter[str | None] = bindparam("payer")
_ALL_APPS: BindParameter[str] = bindparam("all")
_THIS_USER: BindParameter[str] = bindparam("user_id")
_GENERATION: BindParameter[str | None] = bindparam("generation")
_THIS_CALL = _calls.id == bindparam("id")
_OF_ACCOUNT = and_(
    _THIS_CALL,
    _calls.app_id == _THIS_APP,
    _calls.user_id.is_not_distinct_from(_THIS_USER),
    _calls.grant_hash.is_not_distinct_from(bindparam("grant_hash")),
)
_IS_USER = and_(_users.app_id == _THIS_APP, _users.user_id == _THIS_USER)
_IS_SUM = and_(
    _sums.app_id == _users.app_id,
    _sums.user_id == _users.user_id,
    _sums.payer_id == _users.payer_id,
    _sums.month == bindparam("month"),
)
_IS_HELD = and_(
    _holders.id == bindparam("holder"),
    _holders.boot == bindparam("boot"),
    _holders.expires_at_ms > bindparam("now_ms"),
)
_THIS_KEY = and_(
    _keys.app_id == _THIS_APP,
    _keys.payer == bindparam("payer"),
    _keys.key_hash == bindparam("key_hash"),
)

SELECT_APP = _text(
    select(*(_apps[name] for name in App.__struct_fields__)).where(
        _apps.id == _THIS_APP, _apps.deleted_at.is_(None)
    ),
    "app_id",
)
SELECT_ACCOUNT = _text(
    select(*_USER_COLUMNS, _OTHERS)
    .select_from(
        schema.connections.outerjoin(schema.funding, _funding.id == _users.funding_id).outerjoin(
            schema.totals, _IS_SUM
        )
    )
    .where(_IS_USER),
    "of_month",
    "month",
    "app_id",
    "user_id",
)


def _select_paying_user(others: ColumnElement[Any], *parameters: str) -> str:
    # This selects no row if the process no longer holds its calls.
    return _text(
        select(*_USER_COLUMNS, others)
        .select_from(
            schema.holders.outerjoin(schema.connections, _IS_USER)
            .outerjoin(schema.funding, _funding.id == _users.funding_id)
            .outerjoin(schema.totals, _IS_SUM)
        )
        .where(_IS_HELD),
        *parameters,
        "app_id",
        "user_id",
        "month",
        "holder",
        "boot",
        "now_ms",
    )


SELECT_PAYING_USER = _select_paying_user(_OTHERS, "of_month")
# Without a ceiling, the spending of the other payers does not count.
SELECT_PAYING_USER_ALONE = _select_paying_user(null())
SELECT_PAYING_GRANT = _text(
    select(*_GRANT_COLUMNS)
    .select_from(
        schema.holders.outerjoin(
            schema.grants,
            and_(_grants.token_hash == bindparam("grant_hash"), _grants.app_id == _THIS_APP),
        ).outerjoin(schema.funding, _funding.id == _grants.funding_id)
    )
    .where(_IS_HELD),
    "grant_hash",
    "app_id",
    "holder",
    "boot",
    "now_ms",
)
SELECT_RESERVATION = _text(
    select(_calls.month, _calls.reserved_nanos, _calls.payer_id, _calls.operator).where(
        _OF_ACCOUNT
    ),
    "id",
    "app_id",
    "user_id",
    "grant_hash",
)
DELETE_RESERVATION = _text(delete(schema.reservations).where(_THIS_CALL), "id")
INSERT_RESERVATION = _row(
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
    "unbounded",
    "payer_id",
    "funding_id",
    "operator",
)
_OUTCOME = (
    "settled_at",
    "prompt_tokens",
    "completion_tokens",
    "billed_nanos",
    "claimed_nanos",
    "ended",
)
_OF_RESERVATION = tuple(
    each.name for each in _rows if each.name in _calls and each.name not in ("id", *_OUTCOME)
)
# The row is a copy of the reservation, because each value that goes through Python takes time.
INSERT_LEDGER_ROW = _text(
    sqlite.insert(schema.ledger).from_select(
        ["reservation_id", *_OF_RESERVATION, *_OUTCOME],
        select(
            _calls.id, *(_calls[name] for name in _OF_RESERVATION), *map(bindparam, _OUTCOME)
        ).where(_THIS_CALL),
    ),
    *_OUTCOME,
    "id",
)
UPSERT_TOTALS = _upsert(schema.totals, "billed_nanos", "reserved_nanos")
SETTLE_TOTALS = _text(
    update(schema.totals)
    .where(
        _sums.app_id == _THIS_APP,
        _sums.user_id == _THIS_USER,
        _sums.payer_id == bindparam("payer_id"),
        _sums.month == bindparam("month"),
    )
    .values(
        billed_nanos=_sums.billed_nanos + bindparam("billed"),
        reserved_nanos=_sums.reserved_nanos - bindparam("reserved"),
    ),
    "billed",
    "reserved",
    "app_id",
    "user_id",
    "payer_id",
    "month",
)
# One row is for the app, and one for all apps.
SELECT_OPERATOR_TOTALS = _text(
    select(_operator.scope, _operator.billed_nanos, _operator.reserved_nanos).where(
        _operator.scope.in_((_THIS_APP, _ALL_APPS)), _operator.month == bindparam("month")
    ),
    "app_id",
    "all",
    "month",
)
UPSERT_OPERATOR_TOTALS = _upsert(schema.operator_totals, "billed_nanos", "reserved_nanos")
SETTLE_OPERATOR_TOTALS = _text(
    update(schema.operator_totals)
    .where(_operator.scope.in_((_THIS_APP, _ALL_APPS)), _operator.month == bindparam("month"))
    .values(
        billed_nanos=_operator.billed_nanos + bindparam("billed"),
        reserved_nanos=_operator.reserved_nanos - bindparam("reserved"),
    ),
    "billed",
    "reserved",
    "app_id",
    "all",
    "month",
)
SELECT_GRANT = _text(
    select(*_GRANT_COLUMNS)
    .select_from(schema.grants.outerjoin(schema.funding, _funding.id == _grants.funding_id))
    .where(_grants.token_hash == bindparam("grant_hash")),
    "grant_hash",
)
UPDATE_GRANT = _text(
    update(schema.grants)
    .where(_grants.token_hash == bindparam("grant_hash"))
    .values(
        requests_left=bindparam("requests"),
        billed_nanos=bindparam("billed"),
        reserved_nanos=bindparam("reserved"),
    ),
    "requests",
    "billed",
    "reserved",
    "grant_hash",
)
SELECT_PRIOR_CALL = _text(
    select(_keys.body_hash, _rows.ended)
    .select_from(
        schema.idempotency.outerjoin(
            schema.ledger,
            and_(_rows.reservation_id == _keys.reservation_id, _rows.corrects.is_(None)),
        )
    )
    .where(_THIS_KEY, _keys.created_at > bindparam("since")),
    "app_id",
    "payer",
    "key_hash",
    "since",
)
UPSERT_IDEMPOTENCY_KEY = _upsert(schema.idempotency, "body_hash", "reservation_id", "created_at")
DELETE_IDEMPOTENCY_KEY = _text(
    delete(schema.idempotency).where(_keys.reservation_id == bindparam("id")), "id"
)
INSERT_LEASE = _row(schema.holders, "id", "expires_at_ms", "boot")
UPDATE_LEASE = _text(
    update(schema.holders).where(_IS_HELD).values(expires_at_ms=bindparam("until_ms")),
    "until_ms",
    "holder",
    "boot",
    "now_ms",
)
UPDATE_METERED = _text(
    update(schema.reservations)
    .where(_OF_ACCOUNT, _calls.holder == bindparam("holder"))
    .values(
        metered_nanos=bindparam("cost"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
        generation_id=func.coalesce(_GENERATION, _calls.generation_id),
    ),
    "cost",
    "prompt",
    "completion",
    "generation",
    "id",
    "app_id",
    "user_id",
    "grant_hash",
    "holder",
)
SELECT_REVOKED_CALLS = _text(
    select(_calls.id)
    .select_from(
        schema.reservations.outerjoin(
            schema.connections,
            and_(_users.app_id == _calls.app_id, _users.user_id == _calls.user_id),
        ).outerjoin(schema.grants, _grants.token_hash == _calls.grant_hash)
    )
    .where(
        _calls.holder == bindparam("holder"),
        or_(_calls.revocations != _users.revocations, _grants.expires_at == bindparam("never")),
    ),
    "holder",
    "never",
)
REVOKE = _text(
    update(schema.connections)
    .where(
        _IS_USER,
        _users.connected,
        or_(_ANY_PAYER.is_(None), _users.payer_id == _ANY_PAYER),
    )
    .values(
        connected=bindparam("connected"),
        changed_at=bindparam("at"),
        revocations=_users.revocations + text("1"),
    ),
    "connected",
    "at",
    "app_id",
    "user_id",
    "payer",
    "payer",
)
END_PAYER_CONNECTIONS = _text(
    update(schema.payer_connections)
    .where(_seen.app_id == _THIS_APP, _seen.user_id == _THIS_USER, _seen.ended_at.is_(None))
    .values(ended_at=bindparam("at"), ended=bindparam("how")),
    "at",
    "how",
    "app_id",
    "user_id",
)
