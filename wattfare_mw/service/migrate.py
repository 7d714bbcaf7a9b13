"""Brings a database to the version that this package knows, or says that it is another's."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from .refusals import invalid

_SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Create or upgrade the tables, in one transaction.

    Raises:
        WattfareError: a version of this package that is not this one made the database. Nothing
            has been touched.
    """
    config = Config()
    # Percent signs are doubled: the option goes through configparser.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with connection.begin():
        current = set(MigrationContext.configure(connection).get_current_heads())
        if current - known:
            raise invalid(
                f"The database is of version {', '.join(sorted(current))}, "
                "which this version of wattfare-mw does not know: upgrade wattfare-mw."
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
