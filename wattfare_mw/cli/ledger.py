"""``wattfare ledger``: verifies and exports the ledger."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click
from sqlalchemy import RowMapping

from ..service.ledger import export as ledger_export
from ..service.ledger import verify as ledger_verify
from ..service.ledger.databases import read_database
from ..types import encode
from .options import database_option, option


@click.group()
def ledger() -> None:
    """Verify and export the ledger. It has a row for each call, which is never changed."""


@ledger.command()
@database_option
def verify(database: str) -> None:
    """Compare the totals with the rows. The exit code is 1 if a total differs.

    It also lists calls whose cost had no upper limit and whose process died. These are not errors.
    Each was billed the last recorded cost, but the upstream may have charged you more.
    """
    faults, lost = read_database(
        database, lambda sql: (ledger_verify.verify(sql), ledger_verify.lost_calls(sql))
    )
    for call in lost:
        click.echo(call)
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.ClickException(f"{len(faults)} totals differ from the rows.")
    click.echo("The ledger is consistent: each total is the sum of its rows.")


@ledger.command()
@database_option
@option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="The format: JSON lines, or CSV with a header line.",
)
@option("--app", "app_id", metavar="ID", help="Export only calls of this app.")
@option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Export only calls that were settled at or after this time, in UTC.",
)
def export(database: str, form: str, app_id: str | None, since: datetime | None) -> None:
    """Print the ledger. Amounts are in nano-dollars (billionths of a US dollar). Times are in
    seconds since 1970. A grant is identified by the hash of its token."""
    start = None if since is None else int(since.replace(tzinfo=UTC).timestamp())
    write = _WRITERS[form]
    read_database(database, lambda sql: write(ledger_export.rows(sql, app_id=app_id, since=start)))


def _write_jsonl(rows: Iterator[RowMapping]) -> None:
    for row in rows:
        sys.stdout.buffer.write(encode(dict(row)) + b"\n")
    sys.stdout.buffer.flush()


def _write_csv(rows: Iterator[RowMapping]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(ledger_export.COLUMNS)
    for row in rows:
        writer.writerow([_inert(row[name]) for name in ledger_export.COLUMNS])


def _inert(value: object) -> object:
    # A spreadsheet reads these characters as the start of a formula, and a user id may begin with
    # one.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


_WRITERS: dict[str, Callable[[Iterator[RowMapping]], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
