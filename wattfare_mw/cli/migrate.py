"""``wattfare migrate``: create or upgrade a database's tables."""

from __future__ import annotations

import click

from ..service.ledger.databases import migrate_database
from .options import database_option
from .places import new_option, refuse_new_file


@click.command()
@database_option
@new_option
def migrate(database: str, make_new: bool) -> None:
    """Upgrade a database to this package's version. `wattfare serve` upgrades an SQLite file by
    itself. PostgreSQL, which many processes may share, is upgraded only by this command."""
    if not make_new:
        refuse_new_file(database, "migrate")
    migrate_database(database)
    click.echo("The database is up to date.")
