"""The spending of each app and user, summed up from the rows of the ledger. Changes nothing."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import Row, case, func, select

from ...errors import WattfareError, invalid_request
from . import schema


class Spent(msgspec.Struct, frozen=True):
    """The spending of one user of an app, or of all one-time grants of the app together.

    Attributes:
        user_id: None for the grants.
        calls: calls of the month that have ended, including those that cost nothing.
        month: the amount billed for the calls of the month, in nano-dollars.
        total: the amount billed for all calls, in nano-dollars.
    """

    user_id: str | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    month: int
    total_calls: int
    total: int


class AppUsage(msgspec.Struct, frozen=True):
    """The spending of the users of one app, the highest in the month first."""

    app_id: str
    name: str
    mode: str
    deleted: bool
    users: list[Spent]


def usage(sql: Sql, month: str, app: str | None = None) -> list[AppUsage]:
    """The spending of each app's users.

    Args:
        month: in UTC, such as ``2026-11``. A call belongs to the month in which it was reserved.
        app: the id of one app, or its name if no other app has the same.

    Raises:
        WattfareError: ``invalid_request``; there is no such app, or there are several.
    """
    apps = sql.execute(select(schema.apps).order_by(schema.apps.c.created_at, schema.apps.c.id))
    wanted = _chosen(list(apps), app)
    table = schema.ledger
    rows = select(
        table.c.app_id,
        table.c.user_id,
        *_sums(case((table.c.month == month, 1), else_=0)),
        *_sums(1),
    ).group_by(table.c.app_id, table.c.user_id)
    if app is not None:
        rows = rows.where(table.c.app_id.in_([row.id for row in wanted]))
    spent: dict[str, list[Spent]] = {}
    for app_id, user_id, *sums in sql.execute(rows):
        calls, billed, prompt, completion, all_calls, all_billed, _, _ = map(int, sums)
        row = Spent(user_id, calls, prompt, completion, billed, all_calls, all_billed)
        spent.setdefault(app_id, []).append(row)
    return [
        AppUsage(
            app_id=row.id,
            name=row.name,
            mode=row.mode,
            deleted=row.deleted_at is not None,
            users=sorted(
                spent.get(row.id, []), key=lambda one: (-one.month, -one.total, one.user_id or "")
            ),
        )
        for row in wanted
        if row.deleted_at is None or row.id in spent
    ]


def _sums(counts: Any) -> list[Any]:
    """The sums of calls, nano-dollars and tokens. If a row corrects another one, only its amount
    counts, because it is not a separate call."""
    table = schema.ledger
    is_call = case((table.c.corrects.is_(None), 1), else_=0)
    return [
        func.sum(counts * is_call),
        func.sum(counts * table.c.billed_nanos),
        func.sum(counts * table.c.prompt_tokens * is_call),
        func.sum(counts * table.c.completion_tokens * is_call),
    ]


def _chosen(apps: list[Row[Any]], wanted: str | None) -> list[Row[Any]]:
    if wanted is None:
        return apps
    found = [row for row in apps if row.id == wanted] or [
        row for row in apps if row.name == wanted and row.deleted_at is None
    ]
    if len(found) == 1:
        return found
    if found:
        ids = ", ".join(row.id for row in found)
        raise invalid_request(f"Several apps have this name. Give an id: {ids}.")
    raise _no_such_app(wanted)


def _no_such_app(wanted: str) -> WattfareError:
    if wanted.startswith(("sk_", "pk_")):
        return invalid_request("That is a key. Give the app's id: `wattfare apps list` shows it.")
    return invalid_request(f"There is no app {wanted[:64]!r}. `wattfare apps list` shows them.")


def is_connected(sql: Sql, app_id: str, user_id: str) -> bool:
    """True if this user has a connected budget."""
    table = schema.connections
    this = (table.c.app_id == app_id, table.c.user_id == user_id, table.c.connected)
    return sql.execute(select(table.c.user_id).where(*this)).first() is not None
