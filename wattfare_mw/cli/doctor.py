"""``wattfare doctor``: checks everything that a billed call needs, and says what to do."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from ..logs import one_line
from ..service import Settings
from ..types import encode
from . import checks
from .checks import Finding
from .options import database_option, json_option, option, price_option, provider_option
from .serve import read_prices, serve

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@click.command()
@option(
    "--base-url",
    metavar="URL",
    help="The service's address. The default is the address of Wattfare's own service.",
)
@option(
    "--app-url",
    metavar="URL",
    help="The public URL of your app, to test streaming through its proxy.",
)
@option(
    "--app-cookie",
    metavar="COOKIE",
    help="The Cookie header of a browser that is signed in to your app. Use the environment"
    " variable instead if other people use this machine.",
)
@option("--user", metavar="ID", help="The user who pays for the short streaming test.")
@option("--model", metavar="MODEL", help="The model for the streaming test.")
@database_option
@option("--upstream", metavar="URL", help="The upstream, as for `wattfare serve`.")
@option("--upstream-key", metavar="KEY", help="Your key for the upstream.")
@provider_option
@price_option("The price of a model, as for `wattfare serve`. Repeat the option for more models.")
@option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="The configuration file of `wattfare serve`.",
)
@json_option
def doctor(
    base_url: str | None,
    app_url: str | None,
    app_cookie: str | None,
    user: str | None,
    model: str | None,
    database: str,
    upstream: str | None,
    upstream_key: str | None,
    provider: str | None,
    prices: tuple[str, ...],
    config: str | None,
    as_json: bool,
) -> None:
    """Check the secret key, the service's address, the clock, the database, the upstream and
    streaming.

    It reads WATTFARE_SECRET_KEY and WATTFARE_BASE_URL, like your app. For each problem, it prints
    what to do. The exit code is 1 if a check fails. The streaming test makes a short call. The call
    is billed to --user or, for a test app, to the user `wattfare-doctor`.
    """
    found: list[Finding] = []

    def show(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            _print(console, finding)

    console = Console(highlight=False, soft_wrap=True)
    service = checks.Service.from_environment(base_url)
    click.get_current_context().call_on_close(service.close)
    for finding in service.run():
        show(finding)
    is_given = _is_given("database")
    if config is not None:
        with serve.make_context("serve", ["--config", config]) as context:
            values = context.params
            is_in_file = context.get_parameter_source("database") is not ParameterSource.DEFAULT
        if is_in_file and not is_given:
            database, is_given = values["database"], True
        upstream = upstream or values["upstream"]
        upstream_key = upstream_key or values["upstream_key"]
        provider = provider or values["provider"]
        prices = prices or values["prices"]
        table = context.meta.get("wattfare_mw.cli.config")
    else:
        table = None
    show(checks.check_database(database, service.app_id, is_given=is_given))
    settings = Settings(
        upstream=upstream,
        upstream_key=(upstream_key or None) if upstream else None,
        provider=provider,
        prices={**(table.prices if table else {}), **read_prices(prices)},
    )
    for finding in checks.check_upstream(settings):
        show(finding)
    show(service.check_streaming(user, model))
    if app_url is not None:
        for finding in checks.check_app(app_url, app_cookie, model or service.slow_model):
            show(finding)
    failed = [one for one in found if one.state == "fail"]
    if as_json:
        answer = {"ok": not failed, "checks": [_wire(one) for one in found]}
        click.echo(encode(answer).decode())
    elif failed:
        console.print(f"\n{len(failed)} of {len(found)} checks failed.")
    else:
        console.print("\nNo check failed.")
    if failed:
        sys.exit(1)


def _is_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is not ParameterSource.DEFAULT


def _print(console: Console, finding: Finding) -> None:
    state = (f"{finding.state:<4}  ", _STYLES[finding.state])
    text = one_line(finding.says)
    console.print(Text.assemble(state, (f"{finding.name:<9}  ", "bold"), text))
    if finding.todo:
        console.print(Text(f"{'':17}→ {one_line(finding.todo)}"))


def _wire(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "state": finding.state,
        "says": finding.says,
        "do": finding.todo or None,
    }
