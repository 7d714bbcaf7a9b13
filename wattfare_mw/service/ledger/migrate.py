"""Upgrades a database to the version of this package, or refuses a newer version."""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from ...errors import WattfareError, invalid_request

_SCRIPTS = Path(__file__).parent / "migrations"
#: The lock that keeps two migrations of the same PostgreSQL apart. Any constant will do.
_MIGRATION_LOCK = 0x57415454
#: Alembic keeps the running migration in global variables, so a process runs one at a time. Each
#: migration has its own thread: two on one event loop would wait for each other.
_one_at_a_time = threading.Lock()


def migrate(connection: Connection) -> None:
    """Create or upgrade the tables, in one transaction.

    Raises:
        WattfareError: another version of this package made the database. Nothing has changed.
    """
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
        if _current(connection) == _versions().newest:
            return
        config = _config()
        config.attributes["connection"] = connection
        with _one_at_a_time:
            command.upgrade(config, "head")


def check(connection: Connection) -> None:
    """Check that the database has the version of this package. Changes nothing.

    Raises:
        WattfareError: it has another version. The message says what to do.
    """
    current = _current(connection)
    if current == _versions().newest:
        return
    said = "is of an older version" if current else "has no tables yet"
    raise invalid_request(f"The database {said}: run `wattfare migrate --database …` first.")


def _config() -> Config:
    config = Config()
    # Percent signs are doubled: the option goes through configparser.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


class _Versions(NamedTuple):
    known: frozenset[str]
    newest: frozenset[str]


@cache
def _versions() -> _Versions:
    """The versions of the scripts. A process reads them once, because it takes milliseconds."""
    scripts = ScriptDirectory.from_config(_config())
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return _Versions(known, frozenset(scripts.get_heads()))


def _current(connection: Connection) -> frozenset[str]:
    current = frozenset(MigrationContext.configure(connection).get_current_heads())
    if current - _versions().known:
        raise unknown_version(current)
    return current


def unknown_version(current: Collection[str]) -> WattfareError:
    """The refusal to change what a newer version of this package has made."""
    return invalid_request(
        f"The database is of version {', '.join(sorted(current))}, "
        "which this version of wattfare-mw does not know. Type: pip install --upgrade wattfare-mw"
    )
