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
    """Bring a database to the version that this package knows. Serving does that by itself for an
    SQLite file; a PostgreSQL that many processes share is upgraded when you say so."""
    if not make_new:
        refuse_new_file(database, "migrate")
    migrate_database(database)
    click.echo("The database is up to date.")
