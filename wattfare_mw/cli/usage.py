"""``wattfare usage``: shows what each app and each user has spent."""

from __future__ import annotations

import re
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import money
from ..logs import one_line
from ..service.ledger import rules
from ..service.ledger.clock import utc_now
from ..service.ledger.databases import read_database
from ..service.ledger.usage import AppUsage, Spent
from ..service.ledger.usage import usage as read_usage
from ..types import encode
from .options import database_option, json_option, option

_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


def _month(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str:
    if value is None:
        return rules.month_of(utc_now())
    if not _MONTH.fullmatch(value):
        raise click.BadParameter("a month has the form 2026-11.")
    return value


@click.command()
@click.argument("app", metavar="[APP]", required=False)
@option(
    "--month",
    callback=_month,
    metavar="YYYY-MM",
    help="The month to show, in UTC. The default is the current one.",
)
@database_option
@json_option
def usage(app: str | None, month: str, database: str, as_json: bool) -> None:
    """Show what each app and each of its users has spent, in USD. APP is an app's id or name.

    A call is shown once it has ended. It belongs to the month in which it began.
    """
    found = read_database(database, lambda sql: read_usage(sql, month, app))
    if as_json:
        every = [one for each in found for one in each.users]
        answer = {"month": month, **_sum(every), "apps": [_app(each) for each in found]}
        click.echo(encode(answer).decode())
        return
    if not found:
        click.echo("There are no apps. Create one with `wattfare apps create NAME`.", err=True)
        return
    console = Console(soft_wrap=not Console().is_terminal, highlight=False)
    for each in found:
        console.print(_table(each, month))
        console.print()


def _table(app: AppUsage, month: str) -> Table:
    state = f"{app.mode}, deleted" if app.deleted else app.mode
    title = Text(f"{app.name}  {app.app_id}  ({state})", style="bold")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_footer=True)
    rows = [(_user_text(one), _sum([one])) for one in app.users]
    total = _sum(app.users)
    table.add_column("user", footer="together", overflow="fold")
    for heading, name in (
        ("calls", "calls"),
        ("tokens in", "prompt_tokens"),
        ("tokens out", "completion_tokens"),
        (f"USD in {month}", "month_usd"),
        ("USD in total", "total_usd"),
    ):
        table.add_column(heading, justify="right", no_wrap=True, footer=_shown(total[name]))
    for who, sums in rows:
        amounts = (sums[column] for column in _COLUMNS)
        table.add_row(Text(who), *map(_shown, amounts))
    return table


_COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "month_usd", "total_usd")


def _user_text(spent: Spent) -> str:
    return "(one-time grants)" if spent.user_id is None else one_line(spent.user_id)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,f}"


def _sum(spent: list[Spent]) -> dict[str, Any]:
    return {
        "calls": sum(one.calls for one in spent),
        "prompt_tokens": sum(one.prompt_tokens for one in spent),
        "completion_tokens": sum(one.completion_tokens for one in spent),
        "month_usd": money.usd(sum(one.month for one in spent)),
        "total_calls": sum(one.total_calls for one in spent),
        "total_usd": money.usd(sum(one.total for one in spent)),
    }


def _app(app: AppUsage) -> dict[str, Any]:
    return {
        "app_id": app.app_id,
        "name": app.name,
        "mode": app.mode,
        "deleted": app.deleted,
        **_sum(app.users),
        "users": [{"user_id": one.user_id, **_sum([one])} for one in app.users],
    }
