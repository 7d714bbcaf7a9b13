"""The rows of the ledger, for export. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection as Sql
from sqlalchemy import RowMapping, select

from . import schema

#: How many rows of the ledger are in memory at a time.
PAGE = 1000
#: The columns of a row, in order.
COLUMNS = tuple(column.name for column in schema.ledger.columns)


def rows(sql: Sql, *, app_id: str | None = None, since: int | None = None) -> Iterator[RowMapping]:
    """The rows of the ledger, in order, one page at a time.

    Args:
        app_id: only rows of this app.
        since: settled at or after this moment (Unix seconds).
    """
    table = schema.ledger
    wanted = select(table).order_by(table.c.id).limit(PAGE)
    if app_id is not None:
        wanted = wanted.where(table.c.app_id == app_id)
    if since is not None:
        wanted = wanted.where(table.c.settled_at >= since)
    last = 0
    while page := sql.execute(wanted.where(table.c.id > last)).mappings().all():
        yield from page
        last = page[-1]["id"]
