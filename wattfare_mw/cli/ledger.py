"""``wattfare ledger``: prove the ledger, and take it out."""

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
    """What was billed: one row for each call, never changed."""


@ledger.command()
@database_option
def verify(database: str) -> None:
    """Prove the totals from the rows; exit code 1 where one nano-dollar is off.

    It also lists the calls whose cost had no bound and whose process died. They are no fault: each
    is billed what was recorded of it. The upstream may have charged you more.
    """
    faults, lost = read_database(
        database, lambda sql: (ledger_verify.verify(sql), ledger_verify.lost_calls(sql))
    )
    for call in lost:
        click.echo(call)
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.ClickException(f"{len(faults)} totals are not what the rows say.")
    click.echo("The ledger holds: every total is what its rows say.")


@ledger.command()
@database_option
@option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with a line of names.",
)
@option("--app", "app_id", metavar="ID", help="Only this app's.")
@option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Only what was settled at or after this moment, in UTC.",
)
def export(database: str, form: str, app_id: str | None, since: datetime | None) -> None:
    """Print the ledger. Amounts are nano-dollars (a billionth of a US dollar), times are seconds
    since 1970, grants are named by the hash of their token."""
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
    # A spreadsheet takes these for the beginning of a formula, and ids are the app's users' own.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


_WRITERS: dict[str, Callable[[Iterator[RowMapping]], None]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
