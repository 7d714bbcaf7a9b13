"""The Markdown is correct: its code comes from tested examples, its commands and options exist, and
its links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.cli import invoke_cli
from support.patience import PATIENCE
from support.service import App, environment

import wattfare_mw
import wattfare_mw.framework
import wattfare_mw.testing
from wattfare_mw import errors
from wattfare_mw.cli.commands import cli
from wattfare_mw.cli.serve import serve
from wattfare_mw.headers import PASSED_TO_BROWSER, PASSED_TO_SERVICE
from wattfare_mw.middleware.options import Options
from wattfare_mw.service.api import rate_limits
from wattfare_mw.service.api.rate_limits import Rate
from wattfare_mw.service.ledger import schema
from wattfare_mw.service.metrics import Metrics
from wattfare_mw.service.models.output_limits import names_for
from wattfare_mw.service.models.provider_facts import PROVIDERS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").rglob("*"))
    if path.suffix in (".py", ".js", ".jsx", ".mjs")
]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def _name(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def _blocks(*languages: str) -> list[Any]:
    blocks: list[Any] = []
    for page in PAGES:
        text = page.read_text()
        for fence in _FENCE.finditer(text):
            if fence[2] in languages:
                line = text.count("\n", 0, fence.start()) + 1
                name = f"{page.relative_to(ROOT)}:{line}"
                blocks.append(pytest.param(textwrap.dedent(fence[3]), id=name))
    return blocks


def test_every_block_names_its_language() -> None:
    known = {"python", "js", "html", "sh", "json", "text", "http", "toml"}
    for page in PAGES:
        for fence in _FENCE.finditer(page.read_text()):
            assert fence[2] in known, f"{page.name}: {fence[0][:60]!r}"


@pytest.mark.parametrize("block", _blocks("python", "js"))
def test_code_comes_from_an_example(block: str) -> None:
    """All paragraphs of a block are in one example, in the same order. `test_examples.py` runs
    every example."""
    paragraphs = re.split(r"\n{2,}", block.strip("\n"))
    assert any(_holds(path.read_text(), paragraphs) for path in EXAMPLES), (
        "this block is in no example"
    )


def _holds(source: str, paragraphs: list[str]) -> bool:
    lines = source.splitlines()
    place = 0
    for paragraph in paragraphs:
        wanted = textwrap.dedent(paragraph).splitlines()
        for start in range(place, len(lines) - len(wanted) + 1):
            found = textwrap.dedent("\n".join(lines[start : start + len(wanted)])).splitlines()
            if found == wanted:
                place = start + len(wanted)
                break
        else:
            return False
    return True


# -- commands


@pytest.mark.parametrize("block", _blocks("sh"))
def test_commands_exist(block: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        match words:
            case []:
                pass
            case ["make", *rest]:
                assert {word for word in rest if "=" not in word} <= set(targets), line
            case ["pip", "install", *what]:
                for extra in re.findall(r"\[(.*?)\]", " ".join(what)):
                    assert set(extra.split(",")) <= set(extras), line
            case ["wattfare", *rest]:
                _check_command(cli, rest, line)
            case ["python", "manage.py", "check" | "test"]:
                pass  # of the reader's project
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), line
            case ["flask", "--app", app, "run"]:
                assert (ROOT / f"{app}.py").is_file(), line
            case ["fastapi", "dev" | "run", script]:
                assert (ROOT / script).is_file(), line
            case ["pytest", folder]:
                assert (ROOT / folder).is_dir(), line
            case ["uvicorn" | "litestar", "--app-dir", folder, *_]:
                (app,) = re.findall(r"(\w+):app\b", line)
                assert (ROOT / folder / f"{app}.py").is_file(), line
            case ["export" | "curl" | "git" | "cd" | "echo", *_]:
                pass  # `curl` is run below
            case _:
                pytest.fail(f"no test checks this command: {line}")


def _check_command(command: click.Command, words: list[str], line: str) -> None:
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, line
        _check_command(command.commands[words[0]], words[1:], line)
        return
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= known, line


# `test_quickstart.py` runs the lines that call an app.
@pytest.mark.parametrize(
    "block", [b for b in _blocks("sh") if "curl" in b.values[0] and ":5000/" not in b.values[0]]
)
def test_curl_lines_work(block: str, app: App) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("needs curl and bash")
    app.connect("user_123", monthlyUsd=1)
    variables = {
        "WATTFARE_BASE_URL": app.service.url,
        "WATTFARE_SECRET_KEY": app.keys.secret_key,
        "WATTFARE_PUBLISHABLE_KEY": app.keys.publishable_key,
        "TOKEN": app.token("user_123"),
        "no_proxy": "127.0.0.1",
    }
    run = subprocess.run(
        ["bash", "-euc", block.replace("curl ", "curl --fail-with-body ")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(variables),
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"error"' not in run.stdout


@pytest.mark.parametrize("block", _blocks("toml"))
def test_option_files_are_valid(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    for_pytest = tomllib.loads(block).get("tool", {}).get("pytest", {}).get("ini_options")
    if for_pytest is not None:
        for name in for_pytest:
            pytestconfig.getini(name)
        return
    (tmp_path / "wattfare.toml").write_text(block)
    ran: list[Any] = []
    monkeypatch.setattr(
        sys.modules[serve.callback.__module__], "run", lambda *given: ran.append(given)
    )
    answer = invoke_cli("serve", "--config", str(tmp_path / "wattfare.toml"))
    assert answer.exit_code == 0, answer.stderr
    settings = ran[0][0]
    assert settings.prices
    assert settings.aliases


def test_table_of_providers_matches_the_code() -> None:
    def yes(value: bool) -> str:
        return "yes" if value else "no"

    rows = (ROOT / "docs" / "models-and-prices.md").read_text().splitlines()
    for each in PROVIDERS:
        found = [f"`{'*' if host[0] == '.' else ''}{host}`" for host in each.hosts]
        found += [f"port {port}" for port in each.ports]
        facts = (each.stops_on_hang_up, each.reports_cost, each.cached_in_prompt)
        cells = [f"`{each.name}`", ", ".join(found) or "any other URL", *map(yes, facts)]
        row = f"| {' | '.join(cells)} | `{each.limit_name}` |"
        assert row in rows, row


def test_table_of_limit_names_matches_the_code() -> None:
    own = [f"`{each.name}`" for each in PROVIDERS if each.one_limit_name]
    reasoning = [
        f"`{each.name}`"
        for each in PROVIDERS
        if not (each.one_limit_name or each.thinks_beyond_limit)
        and names_for("o3", ("max_tokens",), each, None) == ("max_completion_tokens",)
    ]
    text = (ROOT / "docs" / "models-and-prices.md").read_text()
    assert f"\n| {', '.join(own)} | the name in the column" in text
    *most, last = reasoning
    assert f"\n| OpenAI's reasoning models at {', '.join(most)} or {last} |" in text


def test_table_of_metrics_matches_the_code() -> None:
    metrics = Metrics()
    metrics.watch_waiting(lambda: 0)
    exposed = [
        (sample.name, family.type, family.documentation.removesuffix("."))
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    text = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| `(wattfare_\w+)` \| (\w+) \| (.*) \|$", text, re.M)
    assert [(name, kind, what[0].upper() + what[1:]) for name, kind, what in rows] == exposed


def test_every_table_of_the_database_is_documented() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    tables = text.split("| table | content |")[1].split("\n\n")[0]
    first_cells = "".join(re.findall(r"^\|([^|]*)\|", tables, re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) == schema.metadata.tables.keys()


#: The first cell of each row with a fixed rate.
RATES = {
    "`POST /sessions`": rate_limits.SESSIONS,
    "`GET /status`": rate_limits.STATUSES,
    "`GET /models`, `GET /models/{id}`": rate_limits.MODEL_LISTS,
    "all requests to `/connections`, and to `/approvals` for a connection": rate_limits.CONNECTIONS,
    "`POST /grants`": rate_limits.GRANTS,
    "`POST /approvals` for a connection": rate_limits.USER_APPROVALS,
    "`POST /approvals` for a grant": rate_limits.APPROVALS,
    "attempts to redeem one approval": rate_limits.REDEMPTIONS,
    "passkeys created or used": rate_limits.SIGN_INS,
    "recovery codes tried": rate_limits.RECOVERY_CODES,
    "keys that a payer adds at `/funding`": rate_limits.KEY_CHECKS,
    "requests with an invalid credential": rate_limits.FAILURES,
    "`/connections`, `/grants`, `/approvals` and the pages together": rate_limits.BROWSERS,
}


def test_table_of_rates_matches_the_code() -> None:
    rows: dict[str, tuple[str, ...]] = {}
    for row in re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "deployment.md").read_text(), re.M):
        what, *cells = (cell.strip() for cell in row.split("|"))
        rows[what] = tuple(cells)
    for what, rate in RATES.items():
        most, of_app = ("" if n is None else f"{n:,}" for n in (rate.most, rate.app))
        of_user, of_address = ("", most) if rate.per == "address" else (most, "")
        assert rows[what] == (of_user, of_address, of_app), what
    assert len(RATES) == sum(type(value) is Rate for value in vars(rate_limits).values())


def test_reserved_halves_match_the_code() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    assert rate_limits.SESSIONS.fair == 1
    for_users = (
        "For each user: the first session,"
        f" the first {rate_limits.STATUSES.fair} status requests,"
        f" the first {rate_limits.CONNECTIONS.fair} requests of `/connections`,"
        f" and the first {rate_limits.USER_APPROVALS.fair} approvals of connections."
    )
    for_addresses = (
        f"For each address: the first {rate_limits.GRANTS.fair} grants"
        f" and the first {rate_limits.APPROVALS.fair} approvals of grants."
    )
    assert for_users in text
    assert for_addresses in text
    without_half = [what for what, rate in RATES.items() if rate.app and rate.most is None]
    assert without_half == ["`GET /models`, `GET /models/{id}`"]
    assert "Only the limit of `GET /models` has no reserved half." in text


def test_every_file_that_checks_the_database_is_documented() -> None:
    text = (ROOT / "docs" / "codebase.md").read_text()
    (row,) = re.findall(r"^\| another database \| (.*) \|$", text, re.M)
    checks = re.compile(r"backend_of\(\w+\) [=!]= |dialect\.name == |sqlite_where")
    for path in sorted((ROOT / "wattfare_mw").rglob("*.py")):
        if path.parent.name != "versions" and checks.search(path.read_text()):
            assert path.name in row, path


def test_every_command_option_is_documented() -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    of_developers = (ROOT / "docs" / "cli.md").read_text()
    pages = {"serve": text, "apps create": text}
    pages |= dict.fromkeys(("dev", "doctor", "usage"), of_developers)
    for command, page in pages.items():
        at: Any = cli
        for word in command.split():
            at = at.commands[word]
        for parameter in at.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in page, (command, parameter.opts[0])


# -- names


def test_every_option_of_the_middleware_is_documented() -> None:
    documented = set(
        re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "middleware.md").read_text(), re.M)
    )
    assert {*Options.__annotations__, "interface"} <= documented


def test_documented_defaults_match_the_code() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(
            wattfare_mw.WattfareMiddleware.__init__
        ).parameters.items()
    }
    text = (ROOT / "docs" / "middleware.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.M)
    rows = [(name, documented) for name, documented in rows if name in defaults]
    assert len(rows) > 8
    for name, documented in rows:
        shown = "20 * 2**20" if name == "max_body_bytes" else repr(defaults[name])
        assert documented.replace('"', "'") == shown, name


def test_every_error_is_documented() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    for name in wattfare_mw.__all__:
        if name.endswith("Error"):
            assert f"`{name}`" in text, name
    for code in (*errors._CLASSES, "invalid_request", "upstream", "unknown"):
        assert f"`{code}`" in text, code


def test_every_status_of_an_invalid_request_is_documented() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    (row,) = re.findall(r"^\| `WattfareError` \| `invalid_request` \| ([\d, ]+) \|", text, re.M)
    only_on_pages = {410}
    in_code = {
        int(status)
        for path in (ROOT / "wattfare_mw").rglob("*.py")
        for status in _INVALID_REQUEST.findall(path.read_text())
    }
    without_a_code = {
        status for status, code in errors._CODE_BY_STATUS.items() if code == "invalid_request"
    }
    assert in_code - only_on_pages | without_a_code == set(map(int, row.split(", ")))


#: Finds the status of ``invalid_request(message, status)``.
_INVALID_REQUEST = re.compile(
    r"invalid_request\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*?, (?:status=)?(\d{3}),?\s*\)"
)


def test_statuses_without_a_code_are_documented() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text()
    (row,) = re.findall(r"^\| Errors without a code \| (.*) \|$", text, re.M)
    documented = {
        int(status): code
        for statuses, code in re.findall(r"([\d, and]+) (?:is|are) `(\w+)`", row)
        for status in re.findall(r"\d+", statuses)
    }
    assert documented == errors._CODE_BY_STATUS


def test_every_forwarded_header_is_documented() -> None:
    text = (ROOT / "docs" / "middleware.md").read_text().lower()
    for direction, names in (
        ("to the service", PASSED_TO_SERVICE),
        ("to the browser", PASSED_TO_BROWSER),
    ):
        (row,) = re.findall(rf"^\| {direction} \| (.*) \|$", text, re.M)
        forwarded, _, _ = row.partition("; and from the middleware")
        assert re.findall(r"`([\w-]+)`", forwarded) == list(names)


def test_names_in_the_text_exist() -> None:
    known = {
        *wattfare_mw.__all__,
        *wattfare_mw.framework.__all__,
        *wattfare_mw.testing.__all__,
        "ChatWattfare",
        "WattfareAiohttp",
        "WattfareModelProvider",
        "WattfareProvider",
    }
    for page in PAGES:
        for name in re.findall(r"`((?:Async)?Wattfare\w*)\b", page.read_text()):
            assert name in known | {"WattfarePlugin", "WattfareRequest"}, (page.name, name)


# -- links


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_every_page_is_linked() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README.read_text()))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert os.path.lexists(ROOT / "LICENSE")


#: The picture of each page of the service.
PICTURES = {
    "approve.html": "approve",
    "approve_confirm.html": "approve-confirm",
    "approve_sign_in.html": "approve-sign-in",
    "budget.html": "budget",
    "calls.html": "budget-calls",
    "change.html": "budget-connections",
    "delete.html": "budget-delete",
    "deleted.html": "budget-deleted",
    "ended.html": "budget-ended",
    "error.html": "error",
    "funding.html": "funding",
    "funding_remove.html": "funding-remove",
    "passkeys.html": "budget-passkeys",
    "recovery_codes.html": "recovery-codes",
    "sign_in.html": "sign-in",
}


def test_docs_show_every_page_of_the_service() -> None:
    templates = ROOT / "wattfare_mw" / "service" / "pages" / "templates"
    pages = {each.name for each in templates.iterdir() if "layout.html" in each.read_text()}
    assert pages == PICTURES.keys()
    shown = (ROOT / "docs" / "demo.md").read_text()
    for name in PICTURES.values():
        for variant in ("phone-light", "phone-dark", "desktop-light", "desktop-dark"):
            assert f"(img/{name}-{variant}.webp)" in shown
    kept = {each.name for each in (ROOT / "docs" / "img").glob("*.webp")}
    assert kept == set(re.findall(r"\(img/([\w-]+\.webp)\)", shown))
