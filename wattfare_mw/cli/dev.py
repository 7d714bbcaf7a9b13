"""``wattfare dev``: runs a service for development, with a test app, and prints each call."""

from __future__ import annotations

import asyncio
import json
import queue
import shlex
import sys
import threading
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from .. import money
from ..errors import WattfareError
from ..logs import LogFormat, log_to, one_line
from ..service import (
    AppKeys,
    Settings,
    encryption_keys_from_environment,
    secret_from_environment,
)
from ..service import serve as run
from ..service.api.state import ServiceState
from ..service.ledger import rules
from ..service.records import CallReport
from ..types import check_user_id, encode
from . import dev_app
from .options import (
    host_option,
    log_format_option,
    log_level_option,
    option,
    port_option,
    price_option,
    provider_option,
    sqlite_option,
    upstream_option,
)
from .places import new_file, port_errors
from .serve import is_from_environment, read_nanos, read_prices

DEFAULT_USER = "ann"
#: The default monthly cap of the users that this command connects, in USD.
DEFAULT_CAP_USD = "5"
#: How long streams may continue after Ctrl-C, in seconds.
STOP_GRACE_SECONDS = 0.5
_MODEL = "wattfare/echo"
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - to print, not to bind


@click.command()
@host_option
@port_option
@sqlite_option
@option(
    "--user",
    "users",
    multiple=True,
    default=(DEFAULT_USER,),
    show_default=True,
    metavar="ID",
    help="A user of your app who starts with a budget. Repeat the option for more users.",
)
@option(
    "--cap-usd",
    metavar="AMOUNT",
    default=DEFAULT_CAP_USD,
    show_default=True,
    help="The monthly cap of each --user, in USD.",
)
@option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON line with the address and the keys, and then a JSON line for each call.",
)
@upstream_option
@option("--upstream-key", metavar="KEY", help="Your key for the upstream. You pay for the calls.")
@option(
    "--user-ceiling-usd",
    metavar="AMOUNT",
    help="The maximum that each user may spend of your money in a month. The default is --cap-usd.",
)
@provider_option
@price_option("The price of a model, in USD per million tokens. Repeat the option for more models.")
@log_level_option("warning")
@log_format_option
def dev(
    host: str,
    port: int,
    database: str,
    users: tuple[str, ...],
    cap_usd: str,
    as_json: bool,
    upstream: str | None,
    upstream_key: str | None,
    user_ceiling_usd: str | None,
    provider: str | None,
    prices: tuple[str, ...],
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Run a service for development until Ctrl-C.

    It creates a test app, prints two `export` lines for your app and a `curl` command for a first
    billed call, and then shows each call. The keys are in a file next to the database, so they are
    the same at the next start. Each --user starts with a budget.

    To run a service for other people, use `wattfare serve`.
    """
    cap = read_nanos(cap_usd, "--cap-usd must be an amount in USD.")
    for user in users:
        check_user_id(user)
    if upstream is None and is_from_environment("upstream_key"):
        upstream_key = None  # the environment variable may be for other runs with --upstream
    operator_pays = bool(upstream_key)
    ceiling = read_nanos(
        user_ceiling_usd or cap_usd, "--user-ceiling-usd must be an amount in USD."
    )
    settings = Settings(
        database=database,
        upstream=upstream,
        upstream_key=upstream_key or None,
        user_ceiling=ceiling if operator_pays else None,
        provider=provider,
        prices=read_prices(prices),
        secret=secret_from_environment(),
        encryption_keys=encryption_keys_from_environment(),
        stop_grace=STOP_GRACE_SECONDS,
    )
    file = dev_app.file_of(database)
    is_new = new_file(database) is not None
    keys = dev_app.find(database)
    if keys is None:
        kept = dev_app.file_of_keys(database)
        had_keys = kept.exists()
        keys = dev_app.create(database)
        if had_keys:
            click.echo(
                f"The keys in {kept.absolute()} are not for this database, so there is a new test"
                " app with new keys. Export the new keys in the terminal of your app.",
                err=True,
            )
    dev_app.connect(database, keys.app_id, users, cap)
    log_to(sys.stderr, log_level.upper(), log_format)
    screen = _JSONScreen() if as_json else _Screen(is_new=is_new, upstream=upstream is not None)
    calls = _Calls(screen)
    with port_errors("dev", host, port), suppress(KeyboardInterrupt):
        run(
            settings,
            host,
            port,
            lambda url: screen.ready(_visible(url, host), keys, file.absolute(), users),
            calls.add,
        )
    calls.close()


def _visible(url: str, host: str) -> str:
    """The URL for a client on this machine."""
    shown = _ANY_ADDRESS.get(host)
    return url if shown is None else f"http://{shown}:{url.rpartition(':')[2]}"


class _Calls:
    """Shows each call and the remaining budget. A thread writes the lines, so a slow output does
    not delay calls."""

    def __init__(self, screen: _Screen | _JSONScreen) -> None:
        self._screen = screen
        self._ended: asyncio.Queue[tuple[CallReport, ServiceState]] | None = None
        self._lines: queue.SimpleQueue[tuple[CallReport, Decimal | None] | None]
        self._lines = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def add(self, call: CallReport, state: ServiceState) -> None:
        """Show a call that has ended."""
        if self._ended is None:
            self._ended = asyncio.Queue()
            self._task = asyncio.create_task(self._look_up(self._ended))
        self._ended.put_nowait((call, state))

    async def _look_up(self, ended: asyncio.Queue[tuple[CallReport, ServiceState]]) -> None:
        while True:
            call, state = await ended.get()
            left: Decimal | None = None
            if call.user_id is not None:
                with suppress(WattfareError):
                    found = await state.store.account(call.app_id, call.user_id)
                    left = rules.status(*found, state.terms).remaining_usd
            self._lines.put((call, left))

    def _write(self) -> None:
        with suppress(OSError, ValueError):  # the output is closed, as by a pipe to `head`
            while (line := self._lines.get()) is not None:
                self._screen.call(*line)

    def close(self) -> None:
        """Write the remaining lines and stop."""
        self._lines.put(None)
        self._writer.join(1)
        self._screen.end()


class _JSONScreen:
    """One JSON object on each line."""

    def ready(self, url: str, keys: AppKeys, file: Path, users: tuple[str, ...]) -> None:
        """Print the address and the keys when the service accepts requests."""
        self._print(
            {
                "event": "ready",
                "url": url,
                "secret_key": keys.secret_key,
                "publishable_key": keys.publishable_key,
                "app_id": keys.app_id,
                "database": f"sqlite:///{file}",
                "users": users,
            }
        )

    def call(self, call: CallReport, left: Decimal | None) -> None:
        """Show a call that has ended."""
        about = {
            "app_id": call.app_id,
            "user": call.user_id,
            "grant": call.grant_hash and call.grant_hash[:16],
            "model": call.model,
            "stream": call.stream,
        }
        if call.ended is None:
            ended = {"code": call.code, "left_usd": left, "request_id": call.request_id}
            self._print({"event": "refused", **about, **ended})
            return
        self._print(
            {
                "event": "call",
                **about,
                "prompt_tokens": call.prompt_tokens,
                "completion_tokens": call.completion_tokens,
                "cost_usd": None if call.cost is None else money.usd(call.cost),
                "left_usd": left,
                "ended": call.ended,
                "code": call.code,
                "request_id": call.request_id,
            }
        )

    def end(self) -> None:
        """Do nothing, because there is no JSON line for the end."""

    @staticmethod
    def _print(line: dict[str, Any]) -> None:
        click.echo(encode(line).decode())  # `echo` flushes, so each line appears at once


class _Screen:
    """Lines for people. On a terminal, they have colours."""

    def __init__(self, *, is_new: bool, upstream: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._is_new = is_new
        self._upstream = upstream
        self._advised: set[str] = set()

    def ready(self, url: str, keys: AppKeys, file: Path, users: tuple[str, ...]) -> None:
        """Print the address and the keys when the service accepts requests."""
        say = self._console.print
        new = " (new)" if self._is_new else ""
        say(Text.assemble(("Wattfare is running.", "bold"), f" Ledger: {file}{new}\n"))
        say("In the terminal of your app, type:\n")
        self._command(f"export WATTFARE_SECRET_KEY={keys.secret_key}")
        self._command(f"export WATTFARE_BASE_URL={url}")
        say(f"\nThe first billed call, paid by the test user {one_line(users[0])}:\n")
        self._command(_curl(url, keys, users[0], self._upstream))
        if self._upstream:
            say(f"\nReplace MODEL with a model of your upstream. See {url}/api/v1/models.")
        say(f"\nThe key for your pages: {keys.publishable_key}")
        say("Each call is shown here. Ctrl-C stops the service.\n")
        heading = _row("time", "user", "model", "tokens", "cost", "left")
        say(Text(heading, style="bold"))

    def call(self, call: CallReport, left: Decimal | None) -> None:
        """Show a call that has ended."""
        user = "(a grant)" if call.user_id is None else one_line(call.user_id)
        model = call.model or "-"
        time = f"{datetime.now().astimezone():%H:%M:%S}"
        if call.ended is None:
            cells = (time, user, model, "-", "-", _amount(left))
            self._console.print(Text(f"{_row(*cells)}  refused: {call.code}", style="yellow"))
            if call.code == "not_connected" and call.user_id is not None:
                self._advise(call.user_id)
            return
        tokens = f"{call.prompt_tokens}+{call.completion_tokens}"
        cost = None if call.cost is None else money.usd(call.cost)
        row = _row(time, user, model, tokens, _amount(cost), _amount(left))
        more = "" if call.ended == "completed" else f"  {call.ended}"
        self._console.print(Text(row + more, style="" if not more else "yellow"))

    def _advise(self, user_id: str) -> None:
        """Show how to give this user a budget, once for each user."""
        if user_id in self._advised:
            return
        self._advised.add(user_id)
        option = one_line(shlex.quote(user_id))
        self._console.print(
            f"          This user has no budget. Start the command again with --user {option}, or"
            " connect a budget in your app.",
            markup=False,
        )

    def end(self) -> None:
        """Print that the service has stopped."""
        with suppress(OSError):
            self._console.print("\nThe service has stopped. Its ledger and its keys are kept.")

    def _command(self, line: str) -> None:
        self._console.print(Text(line, style="cyan"))


def _row(time: str, user: str, model: str, tokens: str, cost: str, left: str) -> str:
    return f"{time:<8}  {user:<16.36}  {model:<24.64}  {tokens:>10}  {cost:>12}  {left:>12}"


def _amount(usd: Decimal | None) -> str:
    return "-" if usd is None else f"${max(usd, Decimal(0)):f}"


def _curl(url: str, keys: AppKeys, user: str, upstream: bool) -> str:
    body = {
        "model": "MODEL" if upstream else _MODEL,
        "messages": [{"role": "user", "content": "Hello, who pays for this?"}],
    }
    headers = (
        f"Authorization: Bearer {keys.secret_key}",
        f"X-Wattfare-User: {_header_value(user)}",
        "Content-Type: application/json",
    )
    lines = [f"curl {url}/api/v1/chat/completions"]
    lines += [f"  -H {shlex.quote(header)}" for header in headers]
    lines += [f"  -d {shlex.quote(json.dumps(body))}"]
    return " \\\n".join(lines)


def _header_value(user: str) -> str:
    from ..calls import payer_of

    return payer_of(user).value
