"""New SQLite databases with their tables: copies of one that is migrated once in each process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine

from support.patience import PATIENCE
from wattfare_mw.service.ledger.databases import migrate_database

T = TypeVar("T")


def sqlite_database(folder: Path, name: str = "ledger.db") -> str:
    """The URL of a new database in this folder, with its tables."""
    file = folder / name
    file.write_bytes(_template())
    return f"sqlite:///{file}"


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "template.db"
        with ThreadPoolExecutor(1) as thread:  # a test may have an event loop
            thread.submit(migrate_database, f"sqlite:///{file}").result()
        assert [each.name for each in Path(folder).iterdir()] == [file.name]
        return file.read_bytes()


def sqlite_transaction(url: str, job: Callable[[Connection], T]) -> T:
    """Runs a job as one transaction on a database with tables. To open a store for it would take
    ten times as long."""
    with _engine(url).begin() as sql:
        return job(sql)


@cache
def _engine(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool, connect_args={"timeout": PATIENCE})
