"""A look at a database from outside of the service: one moment of it, and nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ...errors import invalid_request
from . import migrate
from .store import backend_of

T = TypeVar("T")


def read_database(url: str, job: Callable[[Sql], T]) -> T:
    """What this reads, in a transaction that sees one moment of the database.

    Raises:
        WattfareError: ``invalid_request``: it is no such URL, cannot be opened, or is of another
            version; 503: it cannot be reached.
    """

    def read(sql: Sql) -> T:
        migrate.check(sql)
        return job(sql)

    if backend_of(url) == "sqlite":
        return _read_sqlite(make_url(url), read)
    from .postgresql.store import run_once

    return asyncio.run(run_once(url, read, isolation="REPEATABLE READ"))


def _read_sqlite(url: URL, job: Callable[[Sql], T]) -> T:
    if not url.database or not Path(url.database).is_file():
        raise invalid_request("There is no such database.")  # and none is made by looking for it
    engine = create_engine(url.set(drivername="sqlite"), hide_parameters=True, poolclass=NullPool)

    # Said by itself: the driver begins no transaction for one who only reads.
    @event.listens_for(engine, "connect")
    def _on_connect(connection: object, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # pyright: ignore[reportAttributeAccessIssue]

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Sql) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN")

    try:
        with engine.connect() as connection:
            return job(connection)
    except DBAPIError as error:
        raise invalid_request(f"The database cannot be read: {error.orig}.") from None
    finally:
        engine.dispose()
