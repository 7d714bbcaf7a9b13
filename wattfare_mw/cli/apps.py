"""``wattfare apps``: the apps of a service's database."""

from __future__ import annotations

from typing import cast

import click

from ..service import create_keys
from ..service.keys import Mode
from ..types import encode
from .options import database_option, option


@click.group()
def apps() -> None:
    """The apps that may call the service."""


@apps.command()
@click.argument("name")
@option(
    "--mode",
    type=click.Choice(["test", "live"]),
    default="test",
    show_default=True,
    help="A test app's tokens approve their own connections.",
)
@database_option
@option("--json", "as_json", is_flag=True, help="Print the keys as JSON.")
def create(name: str, mode: str, database: str, as_json: bool) -> None:
    """Make an app called NAME and print its keys, this once: only a hash is kept."""
    keys = create_keys(database, name, cast("Mode", mode))
    if as_json:
        click.echo(encode(keys).decode())
        return
    click.echo(f"app id           {keys.app_id}")
    click.echo(f"publishable key  {keys.publishable_key}")
    click.echo(f"secret key       {keys.secret_key}")
    click.echo("The secret key is not kept and cannot be shown again.", err=True)
