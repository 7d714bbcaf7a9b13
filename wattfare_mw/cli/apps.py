"""``wattfare apps``: manages the apps in a service's database."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..service import create_keys
from ..service.keys import Mode
from ..service.ledger import apps as ledger_apps
from ..service.ledger.clock import utc_now
from ..service.ledger.databases import change_database, read_database
from ..service.ledger.store import APP_SECONDS
from ..types import encode
from .options import database_option, json_option, option
from .places import new_option, refuse_new_file

#: After how long a running service stops accepting a revoked key, as text.
WITHIN = f"within {APP_SECONDS:g} second" + ("" if APP_SECONDS == 1 else "s")
app_argument = click.argument("app", metavar="APP")


@click.group()
def apps() -> None:
    """Manage the apps that may call the service. APP is an app's id, as shown by `list`."""


@apps.command()
@click.argument("name")
@option(
    "--mode",
    type=click.Choice(["test", "live"]),
    default="test",
    show_default=True,
    help="A test app's session tokens connect budgets without approval. A live app's users must"
    " approve on a page of the service.",
)
@option(
    "--origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="The origin of the app's pages, such as https://app.example.com. After an approval, the"
    " service returns the browser only to such an origin. Repeat the option to add more.",
)
@database_option
@new_option
@option("--json", "as_json", is_flag=True, help="Print the keys as JSON.")
def create(
    name: str,
    mode: str,
    origins: tuple[str, ...],
    database: str,
    make_new: bool,
    as_json: bool,
) -> None:
    """Create an app called NAME and print its keys. The secret key is printed only once, because
    the service stores only its hash.

    The database must exist. `wattfare serve` creates it.
    """
    if not make_new:
        refuse_new_file(database, f"apps create {shlex.quote(name)}")
    keys = create_keys(database, name, cast("Mode", mode), origins)
    if mode == "live" and not origins:
        click.echo(
            "This app has no origin yet, so users cannot connect to it. Add one with"
            f" `wattfare apps add-origin {keys.app_id} https://…`.",
            err=True,
        )
    if as_json:
        click.echo(encode(keys).decode())
        return
    click.echo(f"app id           {keys.app_id}")
    click.echo(f"publishable key  {keys.publishable_key}")
    click.echo(f"secret key       {keys.secret_key}")
    click.echo("The secret key is not stored and cannot be shown again.", err=True)


@apps.command("list")
@option("--deleted", is_flag=True, help="Also show deleted apps.")
@database_option
@json_option
def show(deleted: bool, database: str, as_json: bool) -> None:
    """List the apps. Their secret keys cannot be shown, because they are not stored."""
    found = read_database(database, lambda sql: ledger_apps.summaries(sql, deleted=deleted))
    if as_json:
        click.echo(encode(found).decode())
        return
    if not found:
        click.echo("There are no apps. Create one with `wattfare apps create NAME`.", err=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("app id", "name", "mode", "keys", "made", "origins"):
        table.add_column(heading, no_wrap=heading in ("app id", "mode", "made"))
    for each in found:
        made = _day(each.created_at)
        state = f"{each.secret_keys}" if each.deleted_at is None else "deleted"
        cells = (each.app_id, each.name, each.mode, state, made, "\n".join(each.origins))
        table.add_row(*map(Text, cells))  # plain text, not markup
    Console(soft_wrap=not Console().is_terminal).print(table)


@apps.command("rotate-key")
@app_argument
@database_option
@json_option
def rotate_key(app: str, database: str, as_json: bool) -> None:
    """Create a second secret key for APP and print it. It is printed only once.

    Both keys are valid until you revoke the older key with `revoke-key`.
    """
    key = change_database(database, lambda sql: ledger_apps.rotate_key(sql, app))
    if as_json:
        click.echo(encode(key).decode())
        return
    click.echo(f"secret key  {key.secret_key}")
    click.echo(
        "The secret key is not stored and cannot be shown again. The older key stays valid. When"
        f" the app uses the new key, run `wattfare apps revoke-key {app}`.",
        err=True,
    )


@apps.command("revoke-key")
@app_argument
@option("--newest", is_flag=True, help="Revoke the newer key and keep the older one.")
@database_option
def revoke_key(app: str, newest: bool, database: str) -> None:
    """Revoke the older of the two secret keys of APP.

    Session tokens that the app created with this key stay valid until they expire, for at most 10
    minutes.
    """
    change_database(database, lambda sql: ledger_apps.revoke_key(sql, app, newest=newest))
    which = "newer" if newest else "older"
    click.echo(
        f"The {which} secret key of {app} is revoked. A running service rejects it {WITHIN}."
    )


@apps.command("add-origin")
@app_argument
@click.argument("origins", metavar="URL…", nargs=-1, required=True)
@database_option
def add_origin(app: str, origins: tuple[str, ...], database: str) -> None:
    """Register origins of the pages of APP, such as https://app.example.com."""
    change_database(database, lambda sql: ledger_apps.add_origins(sql, app, origins))
    click.echo(f"The service now returns users to {', '.join(origins)}.")


@apps.command("remove-origin")
@app_argument
@click.argument("origin", metavar="URL")
@database_option
def remove_origin(app: str, origin: str, database: str) -> None:
    """Remove an origin of the pages of APP."""
    change_database(database, lambda sql: ledger_apps.remove_origin(sql, app, origin))
    click.echo(f"The service no longer returns users to {origin}.")


@apps.command()
@app_argument
@option("--yes", is_flag=True, help="Do not ask.")
@database_option
def delete(app: str, yes: bool, database: str) -> None:
    """Delete APP permanently. Its keys stop working, and its users' budgets are disconnected.

    The ledger keeps its rows.
    """
    if not yes:
        click.confirm(f"Delete the app {app} permanently?", abort=True)
    ended = change_database(database, lambda sql: ledger_apps.delete_app(sql, app, utc_now()))
    users = "1 budget is" if ended == 1 else f"{ended} budgets are"
    click.echo(f"The app {app} is deleted; {users} disconnected. Its keys stop working {WITHIN}.")


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
