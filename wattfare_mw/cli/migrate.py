"""``wattfare migrate``: create or upgrade a database's tables."""

from __future__ import annotations

import click

from ..service.ledger.databases import migrate_database
from .options import database_option


@click.command()
@database_option
def migrate(database: str) -> None:
    """Bring a database to the version that this package knows. Serving does that by itself for an
    SQLite file; a PostgreSQL that many processes share is upgraded when you say so."""
    migrate_database(database)
    click.echo("The database is up to date.")
