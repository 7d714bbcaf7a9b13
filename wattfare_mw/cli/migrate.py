"""``wattfare migrate``: creates or upgrades the tables of a database."""

from __future__ import annotations

import click

from ..service.ledger.databases import migrate_database
from .options import database_option
from .places import new_option, refuse_new_file


@click.command()
@database_option
@new_option
def migrate(database: str, make_new: bool) -> None:
    """Create or upgrade the tables of a database. `wattfare serve` does this itself for an SQLite
    file. For PostgreSQL, run this command, because many processes may share the database."""
    if not make_new:
        refuse_new_file(database, "migrate")
    migrate_database(database)
    click.echo("The database is up to date.")
