"""``--config FILE``: reads options and tables of a command from a TOML file.

A value in the file becomes the default of its option. So the command line and the environment
override the file. An error names the file and the key, but does not show the value, which may be a
secret.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import click
import msgspec

from ..errors import WattfareError
from ..service.chat.families import MAX_OWN, OWN_KEYS
from ..service.models.own_prices import FORM, read_price
from .options import option

PRICES, ALIASES, MEDIA = "prices", "aliases", "media"
#: Options that are tables in the file, and the names of these tables.
_INSTEAD = {"price": PRICES}
_AMOUNTS = ("input", "output", "cached")
_KEY = "wattfare_mw.cli.config"


class Tables(msgspec.Struct, frozen=True):
    """The tables of the file. Their values have the form of ``Settings``."""

    prices: Mapping[str, str] = {}
    aliases: Mapping[str, str] = {}
    media: Mapping[str, Mapping[str, int]] = {}


class ConfiguredCommand(click.Command):
    """A command with ``--config``. Its help shows the defaults of the command, and not values of
    the file, which may contain a password."""

    def get_help(self, ctx: click.Context) -> str:
        """The help."""
        ctx.default_map = None
        return super().get_help(ctx)


def tables() -> Tables:
    """The tables in this command's file. Without a file, they are empty."""
    return click.get_current_context().meta.get(_KEY, Tables())


def _read(ctx: click.Context, _option: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    values = _load(path)
    read: dict[str, Mapping[str, Any]] = {}
    defaults: dict[str, Any] = {}
    try:
        for name, reader in ((PRICES, _prices), (ALIASES, _aliases), (MEDIA, _media)):
            read[name] = reader(_table(values.pop(name, {}), name))
        known = {_key_of(each): each for each in ctx.command.params if each.expose_value}
        for name, value in values.items():
            key = name.replace("_", "-")
            if key in _INSTEAD:
                raise _WrongError(name, f"must be in the table [{_INSTEAD[key]}]")
            parameter = known.get(key)
            if parameter is None:
                raise _WrongError(name, "is not an option of this command")
            assert parameter.name is not None
            if parameter.name in defaults:
                raise _WrongError(name, "is given twice")
            defaults[parameter.name] = _checked(ctx, parameter, name, value)
    except _WrongError as error:
        raise click.UsageError(f"{path}: {error}") from None
    ctx.default_map = defaults
    ctx.meta[_KEY] = Tables(**read)


config_option = option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_read,
    metavar="FILE",
    help="A TOML file with any of these options, and with the tables [prices], [aliases] and"
    " [media]. The command line and the environment override the file.",
)


class _WrongError(Exception):
    """The value of ``key`` in the file is invalid."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"`{key:.200}` {why}.")


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            # Some editors of Windows write a byte order mark.
            text = file.read().decode("utf-8-sig")
        return tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise click.UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        # Do not show the error's text, because it may quote the file.
        place = _place(error)
        raise click.UsageError(f"{path}: is not valid TOML{place}.") from None


def _place(error: Exception) -> str:
    """The position in the error's text, such as ``(at line 1, column 2)``. Empty if there is
    none."""
    _, found, place = str(error).rpartition(" (at ")
    return f": see {place.removesuffix(')')}" if found else ""


def _key_of(parameter: click.Parameter) -> str:
    return parameter.opts[0].removeprefix("--")


def _checked(ctx: click.Context, parameter: click.Parameter, name: str, value: Any) -> Any:
    wanted = _wanted(parameter)
    match wanted, value:
        case ("true or false", bool()) | ("text", str()):
            checked = value
        case "an amount in USD", int() | Decimal() | str() if not isinstance(value, bool):
            checked = str(value)
        case "a whole number", int() if not isinstance(value, bool):
            checked = value
        case "a number", int() | Decimal() if not isinstance(value, bool):
            checked = value
        case _:
            raise _WrongError(name, f"must be {wanted}, not {_kind(value)}")
    try:
        parameter.type_cast_value(ctx, checked)
    except (click.BadParameter, ArithmeticError, ValueError):
        raise _WrongError(name, f"must be {wanted}{_range(parameter)}") from None
    return checked


def _range(parameter: click.Parameter) -> str:
    kind: Any = parameter.type
    choices: tuple[str, ...] = getattr(kind, "choices", ())
    if choices:
        return ": " + ", ".join(choices)
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    if least is None:
        return ""
    return f", {least} or more" if most is None else f" from {least} to {most}"


def _wanted(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "true or false"
    if parameter.metavar == "AMOUNT":
        return "an amount in USD"
    kinds = ((click.types.IntParamType, "a whole number"), (click.types.FloatParamType, "a number"))
    return next((name for kind, name in kinds if isinstance(parameter.type, kind)), "text")


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | Decimal():
            return "a number"
        case str():
            return "text"
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or a time"


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(name, f"must be a table, not {_kind(value)}")
    return cast("dict[str, Any]", value)


def _prices(table: dict[str, Any]) -> dict[str, str]:
    prices: dict[str, str] = {}
    for model, value in table.items():
        key = f"{PRICES}.{model}"
        if isinstance(value, dict):
            prices[model] = _price(key, cast("dict[str, Any]", value))
        elif isinstance(value, str):
            prices[model] = value
        else:
            raise _WrongError(
                key, f'must be text such as "0.10/0.40" or a table, not {_kind(value)}'
            )
        try:
            read_price(model, prices[model])
        except WattfareError:
            raise _WrongError(key, f"is not a price. Use the form {FORM}") from None
    return prices


def _price(key: str, fields: dict[str, Any]) -> str:
    unknown = [name for name in fields if name not in _AMOUNTS]
    if unknown:
        # A dot in an unquoted name creates a nested table in TOML.
        raise _WrongError(
            f"{key}.{unknown[0]}",
            "is unknown. A price has `input`, `output` and `cached`. Put a name with a dot in"
            " quotes",
        )
    for name in ("input", "output"):
        if name not in fields:
            raise _WrongError(key, f"has no `{name}`")
    return "/".join(_amount(f"{key}.{name}", fields[name]) for name in _AMOUNTS if name in fields)


def _amount(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise _WrongError(key, f"must be a number, not {_kind(value)}")
    if isinstance(value, str):
        return value
    number = Decimal(value)
    if not number.is_finite() or abs(number.adjusted()) > 20:
        raise _WrongError(key, "is not a price in USD")
    return format(number, "f")


def _aliases(table: dict[str, Any]) -> dict[str, str]:
    for name, model in table.items():
        if not isinstance(model, str):
            raise _WrongError(
                f"{ALIASES}.{name}",
                f"must be the name of a model, not {_kind(model)}. Put a name with a dot in quotes",
            )
    return table


def _media(table: dict[str, Any]) -> dict[str, Mapping[str, int]]:
    for model, row in table.items():
        key = f"{MEDIA}.{model}"
        for name, value in _table(row, key).items():
            if name not in OWN_KEYS:
                raise _WrongError(
                    f"{key}.{name}",
                    f"is unknown. A row has {', '.join(OWN_KEYS)}. Put a name with a dot in quotes",
                )
            if type(value) is not int or not 0 <= value <= MAX_OWN:
                raise _WrongError(f"{key}.{name}", f"must be a whole number from 0 to {MAX_OWN:,}")
    return table
