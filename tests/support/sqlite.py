"""New SQLite databases with their tables: copies of one that is migrated once in each process."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from wattfare_mw.service.ledger.databases import migrate_database


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
