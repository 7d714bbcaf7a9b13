"""``wattfare serve``: runs the service."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Literal, cast

import click
from click.core import ParameterSource

from .. import money
from ..logs import LogFormat, get_logger, log_to
from ..service import Settings, encryption_keys_from_environment, secret_from_environment
from ..service import serve as run
from ..service.chat.request import DEFAULT_MAX_TOKENS, MAX_TOKENS
from ..service.models.own_prices import FORM
from ..service.records import DEFAULT_GRANT, DETACHED_SECONDS, UNBOUNDED_HOLD
from ..service.settings import (
    CALLS_PER_APP,
    CALLS_PER_USER,
    FORWARDED_ALLOW_IPS,
    MAX_ANSWER_BYTES,
    MAX_CALLS_PER_APP,
    MAX_CALLS_PER_USER,
    STOP_GRACE_SECONDS,
    Funding,
)
from .config import ConfiguredCommand, config_option, tables
from .options import (
    database_option,
    host_option,
    log_format_option,
    log_level_option,
    number_option,
    option,
    port_option,
    price_option,
    provider_option,
    upstream_option,
)
from .places import new_file, port_errors

log = get_logger("wattfare_mw.service", show_messages=False)

NO_CEILING = "none"


@click.command(cls=ConfiguredCommand)
@config_option
@host_option
@port_option
@database_option
@upstream_option
@option(
    "--upstream-key",
    metavar="KEY",
    help="Your key for the upstream. With a key, you pay for calls.",
)
@option(
    "--funding",
    metavar="KINDS",
    help="What may pay for calls, separated by commas. `operator`: your key. `openrouter`: a key"
    " that a payer connects at OpenRouter. `key`: a payer's own key for the upstream. By"
    " default, everything that the upstream and your key allow.",
)
@option(
    "--user-ceiling-usd",
    metavar="AMOUNT",
    help="The maximum that each user may spend of your money in a month, or `none`.",
)
@option(
    "--app-ceiling-usd",
    metavar="AMOUNT",
    help="The maximum that each app may spend of your money in a month.",
)
@option(
    "--total-ceiling-usd",
    metavar="AMOUNT",
    help="The maximum that all apps together may spend of your money in a month.",
)
@option(
    "--grant-ceiling-usd",
    metavar="AMOUNT",
    help="The maximum that the one-time grants of each app may cost you together. A grant counts"
    " for 24 hours. Without this option, apps cannot create grants that you pay for.",
)
@option(
    "--grant-default-usd",
    metavar="AMOUNT",
    default=str(money.usd(DEFAULT_GRANT)),
    show_default=True,
    help="The amount of a one-time grant if the app does not ask for an amount.",
)
@option(
    "--grant-max-usd",
    metavar="AMOUNT",
    help="The largest amount of a grant that you pay for. A grant that asks for more gets this"
    " amount. The default is --grant-default-usd.",
)
@number_option(
    "--default-max-tokens",
    DEFAULT_MAX_TOKENS,
    "TOKENS",
    "The token limit of an answer, if the call does not set one.",
    most=MAX_TOKENS,
)
@price_option(
    "The price of a model, in USD per million tokens of input and output, such as"
    " 'llama3.2=0/0'. 'x=1/2/0.1' also has a price for cached input. This option overrides"
    " other prices. 'qwen*=…' sets the price of all matching models, and '*=…' the price of"
    " all models without another price. Repeat the option for more models."
)
@provider_option
@option(
    "--allow-unpriced",
    is_flag=True,
    help="Allow models without a fixed price, even if the upstream may not report the cost of each"
    " call. Each call of such a model reserves --unbounded-hold-usd.",
)
@option(
    "--unbounded",
    type=click.Choice(["hold", "refuse"]),
    default="hold",
    show_default=True,
    help="What to do with calls whose cost has no upper limit, such as calls with plugins. `hold`"
    " allows them on budgets with a cap, and each reserves --unbounded-hold-usd or the rest"
    " of the budget. `refuse` refuses them.",
)
@option(
    "--unbounded-hold-usd",
    metavar="AMOUNT",
    default=str(money.usd(UNBOUNDED_HOLD)),
    show_default=True,
    help="The amount that a call reserves if its cost has no upper limit. The real cost is billed,"
    " up to this amount. You pay the rest.",
)
@option(
    "--unknown-fields",
    type=click.Choice(["refuse", "pass"]),
    default="refuse",
    show_default=True,
    help="What to do with calls that have unknown fields. `refuse` refuses them. `pass` treats"
    " them as calls whose cost has no upper limit.",
)
@option(
    "--metrics",
    is_flag=True,
    help="Serve /metrics for Prometheus. Every client that can reach the port can read it.",
)
@option(
    "--rate-limit-storage",
    metavar="URL",
    help="redis://host:port, to share rate limits between processes. By default, each process has"
    " its own limits.",
)
@number_option(
    "--max-answer-bytes",
    MAX_ANSWER_BYTES,
    "BYTES",
    "The maximum size of an upstream's response that is not a stream.",
)
@number_option(
    "--max-calls-per-user",
    MAX_CALLS_PER_USER,
    "CALLS",
    "The maximum number of running inference calls of one user or one grant, in each process.",
)
@number_option(
    "--max-calls-per-app",
    MAX_CALLS_PER_APP,
    "CALLS",
    "The maximum number of running inference calls of one app, in each process.",
)
@number_option(
    "--calls-per-minute-per-user",
    CALLS_PER_USER,
    "CALLS",
    "The maximum number of inference calls per minute of one user or one grant, in each process.",
)
@number_option(
    "--calls-per-minute-per-app",
    CALLS_PER_APP,
    "CALLS",
    "The maximum number of inference calls per minute of one app, in each process.",
)
@option(
    "--public-url",
    metavar="URL",
    help="The URL at which people open the pages, such as https://wattfare.example.com. Passkeys"
    " need https and a host name, or localhost. The default is http://localhost with the"
    " port.",
)
@option(
    "--forwarded-allow-ips",
    default=FORWARDED_ALLOW_IPS,
    show_default=True,
    metavar="ADDRESSES",
    help="The proxies whose X-Forwarded-For header is trusted, as addresses and networks,"
    " separated by commas. Use `*` only if no other client can reach the port.",
)
@option(
    "--stop-grace",
    type=float,
    default=STOP_GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long streams may continue after SIGTERM.",
)
@option(
    "--detached-seconds",
    type=float,
    default=DETACHED_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a call may continue after its client has left. A response that is not a stream"
    " is still read and billed.",
)
@option(
    "--on-hang-up",
    type=click.Choice(["stop", "finish"]),
    help="What to do with a stream whose client leaves. `stop` closes the connection to the"
    " upstream. `finish` reads the stream to its end and bills it. The default depends on the"
    " provider.",
)
@log_level_option("info")
@log_format_option
def serve(
    host: str,
    port: int,
    database: str,
    upstream: str | None,
    upstream_key: str | None,
    funding: str | None,
    user_ceiling_usd: str | None,
    app_ceiling_usd: str | None,
    total_ceiling_usd: str | None,
    grant_ceiling_usd: str | None,
    grant_default_usd: str,
    grant_max_usd: str | None,
    default_max_tokens: int,
    prices: tuple[str, ...],
    provider: str | None,
    allow_unpriced: bool,
    unbounded: Literal["hold", "refuse"],
    unbounded_hold_usd: str,
    unknown_fields: Literal["refuse", "pass"],
    metrics: bool,
    rate_limit_storage: str | None,
    max_answer_bytes: int,
    calls_per_minute_per_user: int,
    calls_per_minute_per_app: int,
    public_url: str | None,
    forwarded_allow_ips: str,
    max_calls_per_user: int,
    max_calls_per_app: int,
    stop_grace: float,
    detached_seconds: float,
    on_hang_up: Literal["stop", "finish"] | None,
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Run a Wattfare-compatible service.

    Each option has an environment variable. Use the variable for a value with a password, because
    arguments are visible in the process list.

    Without --upstream, the built-in models wattfare/echo and wattfare/echo-slow answer.
    WATTFARE_SERVICE_SECRET signs session tokens. Without it, the service uses a key in the
    database. WATTFARE_ENCRYPTION_KEY encrypts the keys of payers. Without it, the service uses a
    key in a file next to an SQLite database. Several processes can share a database: SQLite on one
    machine, PostgreSQL on many. If a process dies, another process settles its calls.
    """
    if upstream is None and is_from_environment("upstream_key"):
        upstream_key = None  # the environment variable may be for other runs
    if upstream is None and is_from_environment("funding"):
        funding = None
    kinds = None if funding is None else tuple(each.strip() for each in funding.split(","))
    operator_pays = bool(upstream_key) and (kinds is None or "operator" in kinds)
    if not operator_pays:
        if is_from_environment("user_ceiling_usd"):
            user_ceiling_usd = None
        if is_from_environment("app_ceiling_usd"):
            app_ceiling_usd = None
        if is_from_environment("total_ceiling_usd"):
            total_ceiling_usd = None
        if is_from_environment("grant_ceiling_usd"):
            grant_ceiling_usd = None
    settings = Settings(
        database=database,
        upstream=upstream,
        upstream_key=upstream_key or None,
        funding=cast("tuple[Funding, ...] | None", kinds),  # Settings checks it
        user_ceiling=_ceiling(user_ceiling_usd, operator_pays=operator_pays),
        app_ceiling=_of_operator(app_ceiling_usd, "--app-ceiling-usd", operator_pays=operator_pays),
        total_ceiling=_of_operator(
            total_ceiling_usd, "--total-ceiling-usd", operator_pays=operator_pays
        ),
        grant_ceiling=_of_operator(
            grant_ceiling_usd, "--grant-ceiling-usd", operator_pays=operator_pays
        ),
        grant_default=read_nanos(
            grant_default_usd, "--grant-default-usd must be an amount in USD."
        ),
        grant_max=_of_operator(grant_max_usd, "--grant-max-usd", operator_pays=operator_pays),
        default_max_tokens=default_max_tokens,
        prices={**tables().prices, **read_prices(prices)},
        aliases=tables().aliases,
        media=tables().media,
        provider=provider,
        allow_unpriced=allow_unpriced,
        unbounded=unbounded,
        unbounded_hold=read_nanos(
            unbounded_hold_usd, "--unbounded-hold-usd must be an amount in USD."
        ),
        unknown_fields=unknown_fields,
        metrics=metrics,
        rate_limit_storage=rate_limit_storage,
        calls_per_minute_per_user=calls_per_minute_per_user,
        calls_per_minute_per_app=calls_per_minute_per_app,
        public_url=public_url,
        forwarded_allow_ips=forwarded_allow_ips,
        max_calls_per_user=max_calls_per_user,
        max_calls_per_app=max_calls_per_app,
        secret=secret_from_environment(),
        encryption_keys=encryption_keys_from_environment(),
        max_answer_bytes=max_answer_bytes,
        stop_grace=stop_grace,
        detached_seconds=detached_seconds,
        on_hang_up=on_hang_up,
    )
    log_to(sys.stderr, log_level.upper(), log_format)
    if (new := new_file(database)) is not None:
        log.info("created a new database: %s", new)
    with port_errors("serve", host, port):
        run(settings, host, port, lambda url: click.echo(f"wattfare: listening on {url}"))


def is_from_environment(parameter: str) -> bool:
    """True if an environment variable sets this option of the running command."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source is ParameterSource.ENVIRONMENT


def read_prices(given: Iterable[str]) -> dict[str, str]:
    """The values of ``--price``, by model."""
    prices: dict[str, str] = {}
    for each in given:
        model, equals, price = each.rpartition("=")
        if not equals:
            raise click.UsageError(f"--price {each!r:.200} does not have the form {FORM}.")
        if model in prices:
            raise click.UsageError(f"--price names {model!r:.200} twice.")
        prices[model] = price
    return prices


def _ceiling(amount: str | None, *, operator_pays: bool) -> int | None:
    if amount is None:
        if operator_pays:
            raise click.UsageError(
                "With an upstream key, you pay for all users. Set --user-ceiling-usd to the"
                f" maximum that each user may spend in a month, or to `{NO_CEILING}`."
            )
        return None
    if not operator_pays:
        raise click.UsageError("--user-ceiling-usd needs --upstream and --upstream-key.")
    if amount == NO_CEILING:
        return None
    return read_nanos(amount, f"--user-ceiling-usd must be an amount in USD or `{NO_CEILING}`.")


def _of_operator(amount: str | None, option: str, *, operator_pays: bool) -> int | None:
    if amount is None:
        return None
    if not operator_pays:
        raise click.UsageError(f"{option} needs --upstream and --upstream-key.")
    return read_nanos(amount, f"{option} must be an amount in USD.")


def read_nanos(amount: str, message: str) -> int:
    """Convert an amount in USD to nano-dollars. If it is invalid, raise an error with this
    message."""
    try:
        nanos = money.cap_nanos(Decimal(amount))
    except InvalidOperation:
        raise click.UsageError(message) from None
    assert nanos is not None
    return nanos
