"""Options that can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..service.models.provider_facts import BY_NAME
from ..service.settings import DEFAULT_DATABASE, DEFAULT_PORT
from ..transport import Secret
from .process_list import SECRETS, variable_of


class SecretText(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Text that tracebacks do not show."""

    name = "text"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Secret:
        """Return the text as a masked string."""
        return Secret(value)


class _Option(click.Option):
    """An option that ignores white space around the value of its variable, such as the line end of
    the file from which it was read."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The value of the variable, or None."""
        value = super().resolve_envvar_value(ctx)
        return (value and value.strip()) or None


def option(name: str, *more: str, **attributes: Any) -> Callable[[Any], Any]:
    """:func:`click.option` with an environment variable, such as ``WATTFARE_STOP_GRACE`` for
    ``--stop-grace``."""
    if name in SECRETS:
        attributes["type"] = SecretText()
    return click.option(
        name, *more, cls=_Option, envvar=variable_of(name), show_envvar=True, **attributes
    )


def number_option(
    name: str, default: int, unit: str, description: str, *, most: int | None = None
) -> Callable[[Any], Any]:
    """An option whose value is a whole number of at least 1.

    Args:
        unit: the unit to show in the help, in capitals.
        most: the largest value.
    """
    return option(
        name,
        type=click.IntRange(1, most),
        default=default,
        show_default=True,
        metavar=unit,
        help=description,
    )


def log_level_option(default: str) -> Callable[[Any], Any]:
    """The option ``--log-level``."""
    return option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default=default,
        show_default=True,
    )


def price_option(description: str) -> Callable[[Any], Any]:
    """The option ``--price``."""
    return option("--price", "prices", multiple=True, metavar="MODEL=IN/OUT", help=description)


def _database_option(description: str) -> Callable[[Any], Any]:
    return option(
        "--database",
        default=DEFAULT_DATABASE,
        show_default=True,
        metavar="URL",
        help=description,
    )


def _without_brackets(_ctx: click.Context, _option: click.Parameter, host: str) -> str:
    """Remove the brackets of an IPv6 address, because people write it as in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


host_option = option("--host", default="127.0.0.1", show_default=True, callback=_without_brackets)
port_option = option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="The port. 0 selects a free port.",
)
log_format_option = option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The format of the log: lines of text, or a JSON object per line.",
)
database_option = _database_option(
    "The ledger: sqlite:///path, or postgresql://user@host/database."
)
sqlite_option = _database_option("The ledger, in an SQLite file: sqlite:///path.")
upstream_option = option(
    "--upstream", metavar="URL", help="Base URL of an OpenAI-compatible API, including /v1."
)
provider_option = option(
    "--provider",
    type=click.Choice(sorted(BY_NAME)),
    help="The provider of the upstream, if its URL does not show it.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON.")
