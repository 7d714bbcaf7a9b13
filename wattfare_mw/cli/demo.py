"""``wattfare demo``: shows the service with a Flask app and a Starlette app. With ``--web``, it
serves a chat app for a browser."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.markup import escape

from ..service import AppKeys, create_keys
from ..service.ledger.apps import add_origins
from ..service.ledger.databases import change_database
from ..sse import Splitter, events, is_done
from .demo_chat import FRAMEWORKS

PROMPT = "I pay for this answer myself and I can see what it costs"
#: The monthly cap. It pays for exactly three answers.
CAP_USD = Decimal("0.000120")
MODEL = "wattfare/echo-slow"
_PATIENCE = 30.0

console = Console(highlight=False)


class DemoError(click.ClickException):
    """A step of the demo failed."""


@click.command()
@click.option(
    "--keep", is_flag=True, help="Keep everything running and print curl commands to try."
)
@click.option("--web", is_flag=True, help="Run a chat app for your browser until Ctrl-C.")
@click.option(
    "--framework",
    type=click.Choice(FRAMEWORKS),
    help="The framework of the chat app of --web.  [default: flask]",
)
def demo(keep: bool, web: bool, framework: str | None) -> None:
    """Show two apps whose users pay for their own AI calls."""
    if keep and web:
        raise click.UsageError("Pass either --keep or --web, not both.")
    if framework and not web:
        raise click.UsageError("--framework needs --web.")
    needed = (framework or "flask",) if web else ("flask", "starlette")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extra = "litestar,demo" if missing[0] == "litestar" else "demo"
        raise DemoError(
            f"{missing[0]} is not installed. The demo needs an extra. Type: pip install"
            f" 'wattfare-mw[{extra}]'"
        )
    # Exit normally after SIGTERM, so that the processes of the demo are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if web:
        with suppress(KeyboardInterrupt):
            _chat(framework or "flask")
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wattfare-demo-")))
        database = f"sqlite:///{folder / 'demo.db'}"
        serve = ["wattfare_mw.cli", "serve", "--port=0", f"--database={database}"]
        service = stack.enter_context(_running(folder / "service.log", serve))
        console.print("[bold]Wattfare[/]: the users of an app pay for its AI calls.\n")
        console.print(f"  a Wattfare service  [cyan]{service}[/]  (built-in model, test keys)")
        apps: dict[str, str] = {}
        for kind in ("flask", "starlette"):
            keys = create_keys(database, f"demo {kind}", "test")
            module = ["wattfare_mw.cli.demo_apps", kind]
            environment = _environment(keys, service)
            apps[kind] = stack.enter_context(_running(folder / f"{kind}.log", module, environment))
            console.print(f"  {f'a {kind.title()} app':<18}  [cyan]{apps[kind]}[/]")
        for (kind, url), user in zip(apps.items(), ("ada", "grace"), strict=True):
            _Story(kind.title(), url, service, user).tell()
        console.print("\n[bold green]Every step succeeded.[/]")
        if keep:
            _keep(service, apps)


def _chat(framework: str) -> None:
    """Serve the chat app and its service until Ctrl-C."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wattfare-demo-")))
        database = f"sqlite:///{folder / 'demo.db'}"
        serve = ["wattfare_mw.cli", "serve", "--port=0", f"--database={database}"]
        # Passkeys work with localhost, but not with an IP address.
        service = _on_localhost(stack.enter_context(_running(folder / "service.log", serve)))
        keys = create_keys(database, "Chat demo", "live")
        module = ["wattfare_mw.cli.demo_chat", framework]
        log = folder / f"{framework}.log"
        app = stack.enter_context(_running(log, module, _environment(keys, service)))
        change_database(database, lambda sql: add_origins(sql, keys.app_id, [app]))
        console.print("[bold]A chat app whose users pay for its AI calls.[/]\n")
        console.print(f"  Open    [bold cyan]{app}[/]  in a browser on this machine.\n")
        console.print(
            "The built-in model answers, so no one pays real money. You need a passkey: your"
            " fingerprint, your face, a PIN or a security key.\nCtrl-C stops it."
        )
        threading.Event().wait()


def _on_localhost(url: str) -> str:
    return url.replace("//127.0.0.1:", "//localhost:")


class _Story:
    """Shows the steps with one app and one user."""

    def __init__(self, title: str, app: str, service: str, user: str) -> None:
        self._title = title
        self._user = user
        self._app = httpx.Client(
            base_url=app, cookies={"user": user}, timeout=_PATIENCE, trust_env=False
        )
        self._caller = httpx.Client(base_url=service, timeout=_PATIENCE, trust_env=False)

    def tell(self) -> None:
        user, title = self._user, self._title
        console.rule(f"[bold]{title}[/], and {user} is signed in")
        with self._app, self._caller:
            self._step("The app's other paths are unchanged.")
            answer = self._app.get("/")
            self._expect("GET /", answer.status_code == 200, answer.text.strip())

            self._step(f"{user} has not connected a budget yet: the first call is refused.")
            self._refused("not_connected")

            self._step(f"{user}'s browser asks the app for a session token.")
            answer = self._app.post("/api/wattfare-token")
            token = self._json(answer).get("token", "")
            self._expect("POST /api/wattfare-token", bool(token), "a token, for ten minutes")

            self._step(f"With it, {user} connects a budget, capped at ${CAP_USD} a month.")
            answer = self._caller.post(
                "/api/v1/connections",
                json={"monthlyUsd": float(CAP_USD)},
                headers={"authorization": f"Bearer {token}"},
            )
            connected = self._json(answer).get("connected") is True
            self._expect("POST /api/v1/connections (the service's)", connected, "connected")

            self._step("Now the app's model answers, word by word, and the budget shrinks.")
            self._show_budget()
            left = CAP_USD
            cost = self._cost()
            while left >= cost:
                self._stream()
                left -= cost
                shown = self._show_budget()
                self._check(shown == left, f"${shown} are left instead of ${left}")

            self._step("The next answer would exceed the cap: it is refused, and costs nothing.")
            self._refused("budget_exceeded")
            self._check(self._show_budget() == left, "a refused call has cost something")

    def _step(self, text: str) -> None:
        console.print(f"\n[bold]{escape(text)}[/]")

    def _call(self, **more: Any) -> dict[str, Any]:
        return {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], **more}

    @staticmethod
    def _cost() -> Decimal:
        # With the built-in model, a word is a token. A million cost $1 in the prompt and $2 in the
        # answer.
        words = len(PROMPT.split())
        return (words * Decimal(1) + words * Decimal(2)) / 10**6

    def _refused(self, code: str) -> None:
        answer = self._app.post("/api/wattfare/chat/completions", json=self._call())
        got = self._json(answer).get("error", {}).get("code")
        self._expect(
            "POST /api/wattfare/chat/completions",
            answer.status_code == 402 and got == code,
            f"402 [yellow]{got}[/]",
        )

    def _stream(self) -> None:
        call = self._call(stream=True, stream_options={"include_usage": True})
        console.print("  [dim]POST /api/wattfare/chat/completions[/]")
        console.print("  [green]│[/] ", end="")
        words: list[str] = []
        cost: Any = None
        done = False
        with self._app.stream("POST", "/api/wattfare/chat/completions", json=call) as answer:
            self._check(answer.status_code == 200, f"the answer is a {answer.status_code}")
            splitter = Splitter()
            for chunk in answer.iter_raw():
                for event in events(splitter.feed(chunk)):
                    if is_done(event.data):
                        done = True
                        continue
                    data: dict[str, Any] = json.loads(event.data, parse_float=Decimal)
                    self._check("error" not in data, f"the stream broke: {data}")
                    for choice in data["choices"]:
                        word = choice["delta"].get("content") or ""
                        words.append(word)
                        console.print(escape(word), end="", soft_wrap=True)
                    usage: dict[str, Any] = data.get("usage") or {}
                    cost = usage.get("cost", cost)
        console.print()
        self._check(done and "".join(words) == PROMPT, "the answer does not repeat the prompt")
        self._check(cost == self._cost(), f"it cost {cost} instead of {self._cost()}")

    def _show_budget(self) -> Decimal:
        answer = self._app.get("/api/wattfare/status")
        self._check(answer.status_code == 200, f"the status is a {answer.status_code}")
        status = json.loads(answer.content, parse_float=Decimal)
        left = Decimal(status["remainingUsd"])
        used = Decimal(status["usage"]["monthlyUsd"])
        full = round(24 * left / CAP_USD)
        bar = f"[green]{'█' * full}[/][dim]{'░' * (24 - full)}[/]"
        console.print(f"  {bar} ${left:.6f} left of ${CAP_USD}, ${used:.6f} billed")
        return left

    def _expect(self, call: str, success: bool, outcome: str) -> None:
        mark = "[green]✓[/]" if success else "[red]✗[/]"
        console.print(f"  [dim]{call}[/] → {outcome} {mark}")
        self._check(success, f"{call} failed")

    def _check(self, success: bool, complaint: str) -> None:
        if not success:
            raise DemoError(f"{self._title}: {complaint}.")

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            return answer.json()
        except ValueError:
            raise DemoError(
                f"{self._title}: {answer.url.path} answered {answer.status_code} without JSON."
            ) from None


def _environment(keys: AppKeys, service: str) -> dict[str, str]:
    return {
        "WATTFARE_SECRET_KEY": keys.secret_key,
        "WATTFARE_PUBLISHABLE_KEY": keys.publishable_key,
        "WATTFARE_BASE_URL": service,
        "NO_PROXY": "127.0.0.1,localhost",  # everything runs on this machine
        "no_proxy": "127.0.0.1,localhost",
    }


@contextmanager
def _running(
    log: Path, module: list[str], environment: dict[str, str] | None = None
) -> Generator[str]:
    """Run a module in a new process. Returns the URL that it prints."""
    with log.open("w") as stderr:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *module],
            env={**_without_ours(os.environ), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # Ctrl-C must reach only this process, which stops the others in order.
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                raise DemoError(f"{log.stem} did not start:\n{log.read_text()}")
            yield found[0].rstrip("/")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _without_ours(variables: Mapping[str, str]) -> dict[str, str]:
    # The environment may have variables for the user's own service.
    return {name: value for name, value in variables.items() if not name.startswith("WATTFARE_")}


def _keep(service: str, apps: dict[str, str]) -> None:
    console.print("\nEverything is still running. In another terminal:\n")
    for what, line in _curl_lines(service, apps["flask"]):
        console.print(f"[dim]# {what}[/]")
        console.print(line, soft_wrap=True, markup=False)
    console.print("\nCtrl-C stops it.")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


def _curl_lines(service: str, app: str) -> Iterator[tuple[str, str]]:
    joan = "curl -sS -H 'Cookie: user=joan'"
    json_type = "-H 'Content-Type: application/json'"
    pick = "import json, sys; print(json.load(sys.stdin)['token'])"
    call = {
        "model": MODEL,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello out there"}],
    }
    yield (
        "a token for a new user, joan",
        f'TOKEN=$({joan} -X POST {app}/api/wattfare-token | python3 -c "{pick}")',
    )
    cap = json.dumps({"monthlyUsd": 1})
    bearer = '-H "Authorization: Bearer $TOKEN"'
    yield (
        "joan's budget, connected: a dollar a month",
        f"curl -sS {bearer} {json_type} -d '{cap}' {service}/api/v1/connections",
    )
    yield (
        "an answer, streamed",
        f"{joan} -N {json_type} -d '{json.dumps(call)}' {app}/api/wattfare/chat/completions",
    )
    yield "what is left", f"{joan} {app}/api/wattfare/status"
