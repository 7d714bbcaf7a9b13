"""Brings a database to the version that this package knows, or says that it is another's."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from ...errors import WattfareError, invalid_request

_SCRIPTS = Path(__file__).parent / "migrations"
#: Holds off a second migration of the same PostgreSQL: any number that is always the same.
_MIGRATION_LOCK = 0x57415454
#: Alembic keeps the migration that runs in globals of its modules: one at a time in a process,
#: whichever databases they are of. (Two on one event loop would wait for each other: each has a
#: thread to itself, SQLite's by nature and PostgreSQL's in `migrate_database`.)
_one_at_a_time = threading.Lock()


def migrate(connection: Connection) -> None:
    """Create or upgrade the tables, in one transaction.

    Raises:
        WattfareError: a version of this package that is not this one made the database. Nothing
            has been touched.
    """
    config = _config()
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
        _current(connection, config)
        config.attributes["connection"] = connection
        with _one_at_a_time:
            command.upgrade(config, "head")


def check(connection: Connection) -> None:
    """Is the database of the version that this package knows? Changes nothing.

    Raises:
        WattfareError: it is not, and what to do about it.
    """
    config = _config()
    current = _current(connection, config)
    if current == set(ScriptDirectory.from_config(config).get_heads()):
        return
    said = "is of an older version" if current else "has no tables yet"
    raise invalid_request(f"The database {said}: run `wattfare migrate --database …` first.")


def _config() -> Config:
    config = Config()
    # Percent signs are doubled: the option goes through configparser.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _current(connection: Connection, config: Config) -> set[str]:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    if current - known:
        raise unknown_version(current)
    return current


def unknown_version(current: set[str]) -> WattfareError:
    """The refusal to touch what a newer version of this package has made."""
    return invalid_request(
        f"The database is of version {', '.join(sorted(current))}, "
        "which this version of wattfare-mw does not know: upgrade wattfare-mw."
    )
