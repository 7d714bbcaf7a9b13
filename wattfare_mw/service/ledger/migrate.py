"""Upgrades a database to the version of this package. A newer database is refused."""

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
#: The id of the lock that prevents two concurrent migrations of a PostgreSQL database. Any constant
#: works.
_MIGRATION_LOCK = 0x57415454
#: Allows one migration at a time, because Alembic has the running migration in global variables.
#: Each migration runs in its own thread, because two on one event loop would deadlock.
_one_at_a_time = threading.Lock()


def migrate(connection: Connection) -> None:
    """Create or upgrade the tables, in one transaction.

    Raises:
        WattfareError: a newer version of this package created the database. Nothing has changed.
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
        WattfareError: the database has another version. The message says what to do.
    """
    current = _current(connection)
    if current == _versions().newest:
        return
    said = "has an older version" if current else "has no tables yet"
    raise invalid_request(f"The database {said}: run `wattfare migrate --database …` first.")


def _config() -> Config:
    config = Config()
    # Double the percent signs, because configparser reads this option.
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
    """The error for a database of a newer version of this package."""
    return invalid_request(
        f"The database has version {', '.join(sorted(current))}, which this version of wattfare-mw "
        "does not know. Type: pip install --upgrade wattfare-mw"
    )
