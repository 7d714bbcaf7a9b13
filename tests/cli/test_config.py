"""``serve --config FILE``: which source wins, and how a mistake in the file is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import Result
from support.cli import invoke_cli
from support.service import run_cli, run_service
from support.upstream import Upstream, reporting

from wattfare_mw.cli import serve as module
from wattfare_mw.cli.commands import cli
from wattfare_mw.cli.process_list import split
from wattfare_mw.errors import WattfareError
from wattfare_mw.service import Settings
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file; returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "wattfare.toml"
        path.write_text(text)
        return str(path)

    return write


def settings_of(*arguments: str, env: dict[str, str] | None = None) -> tuple[Settings, str, int]:
    """What ``serve`` would use: the settings, the host and the port."""
    ran: list[Any] = []
    with patch.object(module, "run", lambda *given: ran.append(given)):
        answer = invoke_cli("serve", *arguments, env=env)
    assert answer.exit_code == 0, answer.stderr
    return ran[0][:3]


def refusal(answer: Result) -> str:
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert answer.exit_code == 2, answer.output
    assert KEY not in answer.output
    return answer.stderr


# -- which source wins


ALL = f"""
host = "0.0.0.0"
port = 1234
database = "sqlite:///x.db"
upstream = "https://example.com/v1"
upstream-key = "{KEY}"
funding = "operator, key"
user-ceiling-usd = 10.5
app-ceiling-usd = 30
total-ceiling-usd = "40.5"
grant_ceiling_usd = "20"
grant-default-usd = 2
grant-max-usd = 3
default-max-tokens = 100
provider = "vllm"
allow-unpriced = true
unbounded = "hold"
unbounded-hold-usd = 0.5
unknown-fields = "pass"
metrics = true
rate-limit-storage = "redis://127.0.0.1:6379"
max-answer-bytes = 1000
max-calls-per-user = 1
max-calls-per-app = 2
calls-per-minute-per-user = 3
calls-per-minute-per-app = 4
public-url = "https://Wattfare.example.com:443/"
forwarded-allow-ips = "*"
stop-grace = 1.5
on-hang-up = "finish"
detached-seconds = 12
log-level = "error"
log-format = "json"

[prices]
"llama3.2" = "0/0"
x = {{ input = 0.1, output = 0.4, cached = 0.01 }}
y = {{ input = 1, output = "2" }}
tiny = {{ input = 1e-7, output = 0.5 }}

[aliases]
"gpt-4o" = "openai/gpt-4o"

[media]
"my-llava*" = {{ image = 576, page = 2000 }}
voice = {{ audio_second = 25 }}
"""


def test_every_option_can_be_in_the_file(write: Callable[[str], str]) -> None:
    settings, host, port = settings_of("--config", write(ALL))
    assert (host, port) == ("0.0.0.0", 1234)
    assert settings.upstream_key == KEY
    assert settings.funding == ("operator", "key")
    wanted: dict[str, object] = {
        "database": "sqlite:///x.db",
        "upstream": "https://example.com/v1",
        "user_ceiling": 10_500_000_000,
        "app_ceiling": 30 * 10**9,
        "total_ceiling": 40_500_000_000,
        "grant_ceiling": 20 * 10**9,
        "grant_default": 2 * 10**9,
        "grant_max": 3 * 10**9,
        "default_max_tokens": 100,
        "provider": "vllm",
        "allow_unpriced": True,
        "unbounded": "hold",
        "unbounded_hold": 5 * 10**8,
        "unknown_fields": "pass",
        "metrics": True,
        "rate_limit_storage": "redis://127.0.0.1:6379",
        "max_answer_bytes": 1000,
        "max_calls_per_user": 1,
        "max_calls_per_app": 2,
        "calls_per_minute_per_user": 3,
        "calls_per_minute_per_app": 4,
        "public_url": "https://wattfare.example.com",
        "forwarded_allow_ips": "*",
        "stop_grace": 1.5,
        "on_hang_up": "finish",
        "detached_seconds": 12,
        "prices": {"llama3.2": "0/0", "x": "0.1/0.4/0.01", "y": "1/2", "tiny": "0.0000001/0.5"},
        "aliases": {"gpt-4o": "openai/gpt-4o"},
        "media": {"my-llava*": {"image": 576, "page": 2000}, "voice": {"audio_second": 25}},
    }
    assert {name: getattr(settings, name) for name in wanted} == wanted
    # This test knows all options.
    options = {option.opts[0].removeprefix("--") for option in cli.commands["serve"].params}
    in_file = {line.partition(" =")[0].replace("_", "-") for line in ALL.splitlines()}
    assert options - in_file == {"config", "price"}


def test_command_line_and_environment_win(write: Callable[[str], str]) -> None:
    path = write('port = 1\nhost = "a"\nstop-grace = 1\n')
    env = {"WATTFARE_PORT": "2", "WATTFARE_HOST": "b", "WATTFARE_CONFIG": path}
    settings, host, port = settings_of("--port", "3", env=env)
    assert (port, host, settings.stop_grace) == (3, "b", 1)
    assert settings.default_max_tokens == Settings().default_max_tokens
    # A file on the command line replaces the one in the environment.
    assert settings_of("--config", write("port = 7"), env={"WATTFARE_CONFIG": "/none"})[2] == 7


@pytest.mark.parametrize("given", ["--price", "WATTFARE_PRICE"])
def test_prices_are_merged_by_model(write: Callable[[str], str], given: str) -> None:
    path = write('[prices]\na = "1/1"\nb = "2/2"\n')
    if given == "--price":
        settings, _, _ = settings_of("--config", path, "--price", "b=3/3", "--price", "c=4/4")
    else:
        settings, _, _ = settings_of("--config", path, env={given: "b=3/3 c=4/4"})
    assert settings.prices == {"a": "1/1", "b": "3/3", "c": "4/4"}


# -- mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", ["`prot`", "not an option"]),
        (f'key = "{KEY}"', ["`key`", "not an option"]),
        ("config = 'x'", ["`config`", "not an option"]),
        ("help = true", ["`help`", "not an option"]),
        ("price = ['a=1/2']", ["`price`", "[prices]"]),
        ("[serve]\nport = 1", ["`serve`", "not an option"]),
        ("stop-grace = 1\nstop_grace = 2", ["`stop_grace`", "twice"]),
        (f'port = "{KEY}"', ["`port`", "a whole number, not text"]),
        ("port = 1.5", ["`port`", "a whole number, not a number"]),
        ("port = true", ["`port`", "not true or false"]),
        ("port = 65536", ["`port`", "from 0 to 65535"]),
        ("max-calls-per-user = 0", ["`max-calls-per-user`", "1 or more"]),
        ("stop-grace = '1'", ["`stop-grace`", "a number, not text"]),
        ("metrics = 1", ["`metrics`", "true or false, not a number"]),
        ("metrics = 'true'", ["`metrics`", "true or false, not text"]),
        ("host = 1", ["`host`", "text, not a number"]),
        ("upstream-key = 1", ["`upstream-key`", "text, not a number"]),
        (f"upstream-key = ['{KEY}']", ["`upstream-key`", "text, not an array"]),
        (f"[upstream-key]\nx = '{KEY}'", ["`upstream-key`", "text, not a table"]),
        ("user-ceiling-usd = true", ["`user-ceiling-usd`", "an amount in USD"]),
        ("user-ceiling-usd = 2026-01-01", ["`user-ceiling-usd`", "not a date"]),
        (f"log-level = '{KEY}'", ["`log-level`", "debug, info"]),
        (f"provider = '{KEY}'", ["`provider`", "openrouter"]),
        ("prices = 1", ["`prices`", "a table, not a number"]),
        ("prices = '1/2'", ["`prices`", "a table, not text"]),
        ("[prices]\nm = 1", ["`prices.m`", "0.10/0.40"]),
        ("[prices]\nm = '1'", ["`prices.m`", "IN/OUT"]),
        ("[prices]\nm = '-1/2'", ["`prices.m`", "IN/OUT"]),
        ("[prices]\n'' = '1/2'", ["`prices.`", "IN/OUT"]),
        ("[prices]\nllama3.2 = '0/0'", ["`prices.llama3.2`", "Put a name with a dot in quotes"]),
        ("[prices]\nm = {input = 1}", ["`prices.m`", "`output`"]),
        ("[prices]\nm = {input = 1, output = true}", ["`prices.m.output`", "number"]),
        ("[prices]\nm = {input = nan, output = 1}", ["`prices.m.input`", "not a price"]),
        ("[prices]\nm = {input = 1e999999999, output = 1}", ["`prices.m.input`", "not a price"]),
        ("[prices]\nm = {input = -1, output = 1}", ["`prices.m`", "IN/OUT"]),
        ("[prices]\nm = {in = 1, out = 1}", ["`prices.m.in`", "`input`"]),
        ("aliases = []", ["`aliases`", "a table, not an array"]),
        ("[aliases]\na = 1", ["`aliases.a`", "name of a model"]),
        ("[aliases]\ngpt-4.1 = 'x'", ["`aliases.gpt-4`", "Put a name with a dot in quotes"]),
        ("[media]\nm = 576", ["`media.m`", "a table, not a number"]),
        ("[media]\nm = {tiles = 1}", ["`media.m.tiles`", "audio_second"]),
        ("[media]\nm = {image = -1}", ["`media.m.image`", "whole number from 0"]),
        ("[media]\nm = {image = 1.5}", ["`media.m.image`", "whole number"]),
        (f"upstream-key = {KEY}", ["not valid TOML", "line 1"]),
        (f'upstream-key = "{KEY}', ["not valid TOML"]),
        ("a = 1\na = 2\nb = 3", ["not valid TOML", "line 2"]),
        ("a = " + "[" * 100_000, ["not valid TOML"]),
    ],
)
def test_mistake_names_the_file_and_the_key(
    write: Callable[[str], str], text: str, says: list[str]
) -> None:
    path = write(text)
    message = refusal(invoke_cli("serve", "--config", path))
    assert path in message
    for each in says:
        assert each in " ".join(message.split())


def test_unreadable_file_is_reported(tmp_path: Path, write: Callable[[str], str]) -> None:
    assert "exist" in refusal(invoke_cli("serve", "--config", str(tmp_path / "none.toml")))
    assert "exist" in refusal(invoke_cli("serve", env={"WATTFARE_CONFIG": "/no/such/file"}))
    assert "directory" in refusal(invoke_cli("serve", "--config", str(tmp_path)))
    Path(path := write("")).write_bytes(b"\xff\xfe")
    assert "not valid TOML" in refusal(invoke_cli("serve", "--config", path))


@pytest.mark.parametrize("aliases", [{"": "x"}, {"x": ""}, {"x": "m" * 257}])
def test_invalid_alias_is_refused(aliases: dict[str, str]) -> None:
    with pytest.raises(WattfareError, match="alias"):
        Settings(aliases=aliases)


def test_dependent_options_are_checked_across_sources(write: Callable[[str], str]) -> None:
    path = write(f'upstream = "http://x/v1"\nupstream-key = "{KEY}"')
    assert "--user-ceiling-usd" in refusal(invoke_cli("serve", "--config", path))
    env = {"WATTFARE_USER_CEILING_USD": "5"}
    assert settings_of("--config", path, env=env)[0].user_ceiling == 5 * 10**9


# -- secrets


def test_help_shows_no_value_of_the_file(write: Callable[[str], str]) -> None:
    path = write('database = "postgresql://ada:hunter2@db.example.com/x"\nport = 4321')
    answer = invoke_cli("serve", "--config", path, "--help")
    assert answer.exit_code == 0
    assert "hunter2" not in answer.output
    assert "4321" not in answer.output
    assert "sqlite:///wattfare.db" in answer.output


def test_key_next_to_a_file_is_not_in_the_process_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["serve", "--config", "x.toml", "--upstream-key", KEY]
    assert split(arguments) == (arguments[:3], {"WATTFARE_UPSTREAM_KEY": KEY})
    monkeypatch.setenv("WATTFARE_CONFIG", "x.toml")
    assert split(["serve", "--upstream-key", KEY]) == (["serve"], {"WATTFARE_UPSTREAM_KEY": KEY})


def test_error_hides_a_password_of_the_file(write: Callable[[str], str]) -> None:
    path = write('database = "postgresql://ada:hunter2@127.0.0.1:1/x"')
    answer = run_cli("serve", "--config", path)
    assert answer.returncode == 1
    assert "cannot be reached" in answer.stderr
    assert "hunter2" not in answer.stderr + answer.stdout


# -- real calls


def test_alias_is_another_name_of_a_model(
    tmp_path: Path, upstream: Upstream, write: Callable[[str], str], database: str
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    upstream.script = reporting(usage)
    path = write(
        f"""
        upstream = "{upstream.url}"
        [prices]
        "openai/gpt-4o" = {{ input = 1, output = 2 }}
        "gpt-4o" = "1000/1000"
        [aliases]
        "gpt-4o" = "openai/gpt-4o"
        "openai/gpt-4o" = "fake/model"
        """
    )
    with (
        run_service(tmp_path, "--config", path, database=database) as service,
        service.app() as app,
    ):
        app.connect(monthlyUsd=1)
        for stream in (False, True):
            upstream.calls.clear()
            answer = app.chat(model="gpt-4o", stream=stream)
            assert answer.status_code == 200, answer.text
            # An alias of an alias is not followed.
            assert upstream.calls[0].json["model"] == "openai/gpt-4o"
            body = answer.text.split("\n")[0].removeprefix("data: ")
            assert json.loads(body)["model"] == "fake/model"  # as the upstream names it
        assert Decimal(str(app.status()["usage"]["monthlyUsd"])) == Decimal("0.0024")
        rows = read_database(database, lambda connection: list(rows_of(connection)))
        assert [row["model"] for row in rows] == ["openai/gpt-4o"] * 2


def test_builtin_model_can_have_aliases(tmp_path: Path, write: Callable[[str], str]) -> None:
    # Some editors of Windows write a byte order mark.
    path = write('\ufeff[aliases]\r\n"gpt-4o" = "wattfare/echo"')
    with run_service(tmp_path, env={"WATTFARE_CONFIG": path}) as service, service.app() as app:
        app.connect(monthlyUsd=1)
        assert app.chat("one two", model="gpt-4o").json()["model"] == "wattfare/echo"
        found = app.http.get("/models/gpt-4o", headers=app.auth).json()
        assert found["id"] == "gpt-4o"
        assert "pricing" in found
