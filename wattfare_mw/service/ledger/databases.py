"""Functions for a database's URL: open a store, add an app, migrate, read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from ...errors import invalid_request
from ...transport import hidden
from ..keys import AppKeys, new_app
from ..records import Mode
from . import accounts, apps, migrate
from .clock import utc_now
from .postgresql import address
from .sqlite.store import SQLiteStore
from .store import Store

T = TypeVar("T")

#: The longest name of an app, in characters.
MAX_NAME = 256
#: The parameters that an SQLite URL may have: those of SQLite, and two of Python's driver.
_SQLITE_PARAMETERS = frozenset(
    {"uri", "mode", "cache", "vfs", "psow", "nolock", "immutable", "timeout", "cached_statements"}
)


async def open_store(url: str) -> Store:
    """Open the store of this database URL. The tables of an SQLite file are upgraded first.

    Raises:
        WattfareError: ``invalid_request`` if the URL is invalid, or if the database cannot be
            opened or has another version; 503 if it cannot be reached.
    """
    url = hidden(url)
    if backend_of(url) == "sqlite":
        return SQLiteStore(url)
    return await _postgresql().open_postgresql(url)


def _postgresql() -> ModuleType:
    """The module for PostgreSQL. It is imported late, because SQLite does not need its imports.

    Raises:
        WattfareError: ``invalid_request``; the extra is not installed.
    """
    try:
        from .postgresql import store
    except ImportError:
        raise invalid_request(
            "PostgreSQL needs an extra. Type: pip install 'wattfare-mw[service,postgresql]'"
        ) from None
    return store


def backend_of(url: str) -> str:
    """``sqlite`` or ``postgresql``.

    Raises:
        WattfareError: ``invalid_request``; it is neither, or it cannot be parsed.
    """
    url = hidden(url)
    if address.is_postgresql(url):
        address.read(url)
        return "postgresql"
    if url.partition(":")[0].partition("+")[0] == "sqlite":
        with suppress(ArgumentError, ValueError):
            for name in make_url(url).query:
                if name not in _SQLITE_PARAMETERS:
                    raise invalid_request(
                        f"The database's URL has an unsupported parameter: {name[:64]!r}."
                    )
            return "sqlite"
    raise invalid_request(
        "The database must be SQLite (sqlite:///wattfare.db, sqlite:////an/absolute/path.db) or"
        " PostgreSQL (postgresql://user@host/database)."
    )


def sqlite_file(url: str) -> Path | None:
    """The file of this SQLite database. None if it is in memory, or if its name is a URI."""
    path = make_url(url).database or ":memory:"
    return None if path == ":memory:" or path.startswith("file:") else Path(path)


def create_keys(
    database: str, name: str, mode: Mode = "test", origins: Iterable[str] = ()
) -> AppKeys:
    """Create an app in this database, and return its keys. Only a hash of the secret key is kept.

    Args:
        origins: the origins of the app's pages, such as ``https://app.example.com``.

    Raises:
        WattfareError: ``invalid_request``; the name or an origin is invalid, or the database cannot
            be opened.
    """
    database = hidden(database)
    if not 0 < len(name.strip()) <= MAX_NAME or not name.isprintable():
        raise invalid_request(f"An app's name must be one line of 1 to {MAX_NAME} characters.")
    checked = apps.check_origins(origins)
    app, app_keys = new_app(name, mode)

    def add(sql: Sql) -> None:
        accounts.add_app(sql, app, utc_now())
        apps.add_origins(sql, app.id, checked)

    _transact(database, add)
    return app_keys


def change_database(url: str, job: Callable[[Sql], T]) -> T:
    """Run a job as one transaction on an existing database.

    Raises:
        WattfareError: ``invalid_request`` if the URL is invalid, or if the database does not exist,
            cannot be opened or has another version; 503 if it cannot be reached.
    """
    url = hidden(url)
    if backend_of(url) == "sqlite":
        _check_exists(make_url(url))
    return _transact(url, job)


def _transact(url: str, job: Callable[[Sql], T]) -> T:
    async def run() -> T:
        store = await open_store(url)
        try:
            return await store.transact(job)
        finally:
            await store.close()

    # Use a new thread, because this thread may have a running event loop.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result()


def migrate_database(url: str) -> None:
    """Create or upgrade the tables of this database.

    Raises:
        WattfareError: ``invalid_request`` if the URL is invalid, or the database has another
            version; 503 if it cannot be reached.
    """
    url = hidden(url)

    async def carry_out() -> None:
        if backend_of(url) == "sqlite":
            await SQLiteStore(url).close()
            return
        await _postgresql().run_once(url, migrate.migrate)

    asyncio.run(carry_out())


def read_database(url: str, job: Callable[[Sql], T]) -> T:
    """Call a function that reads, in a transaction with one snapshot of the database. Returns its
    result.

    Raises:
        WattfareError: ``invalid_request`` if the URL is invalid, or if the database cannot be
            opened or has another version; 503 if it cannot be reached.
    """
    url = hidden(url)

    def read(sql: Sql) -> T:
        migrate.check(sql)
        return job(sql)

    if backend_of(url) == "sqlite":
        return _read_sqlite(make_url(url), read)
    return asyncio.run(_postgresql().run_once(url, read, isolation="REPEATABLE READ"))


def _read_sqlite(url: URL, job: Callable[[Sql], T]) -> T:
    _check_exists(url)
    engine = create_engine(url.set(drivername="sqlite"), hide_parameters=True, poolclass=NullPool)

    # The driver does not begin a transaction before a read.
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
        raise invalid_request(
            f"The database {engine.url.database} cannot be read: {error.orig}."
        ) from None
    finally:
        engine.dispose()


def _check_exists(url: URL) -> None:
    if not url.database or not Path(url.database).is_file():
        # Reading must not create the file.
        there = f" {Path(url.database).absolute()}" if url.database else ""
        raise invalid_request(
            f"There is no database{there}. If your service keeps its database in another directory,"
            " add --database sqlite:////path/to/wattfare.db. If there is no service yet, type:"
            " wattfare dev"
        )
