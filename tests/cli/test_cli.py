"""The command: what it prints, what it refuses, and how it exits."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result
from support.cli import invoke_cli
from support.ports import refused_port
from support.service import (
    bearer,
    chat_body,
    environment,
    eventually,
    run_cli,
    run_service,
)

from wattfare_mw.cli import _NEEDED

NO_SERVER = f"127.0.0.1:{refused_port()}"


def failed(answer: Result, code: int = 1) -> str:
    """Checks that it failed with a message and not with an exception. Returns the message."""
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert answer.exit_code == code, answer.stderr
    assert "Error: " in answer.stderr
    return answer.stderr


def test_new_app_can_use_a_running_service(tmp_path) -> None:
    with run_service(tmp_path, forked=False) as service:
        arguments = ("apps", "create", "My app", "--database", service.database)
        made = run_cli(*arguments, "--json")
        assert made.returncode == 0
        keys = json.loads(made.stdout)
        assert set(keys) == {"appId", "publishableKey", "secretKey"}
        assert keys["secretKey"].startswith(f"sk_test_{keys['appId']}_")
        assert keys["publishableKey"].startswith("pk_")
        with service.app() as app:
            answer = app.http.get("/models", headers=bearer(keys["secretKey"]))
        assert answer.status_code == 200
        live = invoke_cli(*arguments, "--mode", "live")
        assert "sk_live_" in live.stdout
        assert service.stop() == 0
    with open(service.database.removeprefix("sqlite:///"), "rb") as file:
        assert keys["secretKey"].encode() not in file.read()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["apps", "create", "", "--new"], "name"),
        (["apps", "create", "two\nlines", "--new"], "name"),
        (
            ["apps", "create", "x", "--database", f"postgresql://{NO_SERVER}/db"],
            "cannot be reached",
        ),
        (["apps", "create", "x", "--database", "nonsense"], "PostgreSQL"),
        (
            ["apps", "create", "x", "--database", "sqlite:////no/such/dir/x.db"],
            "The database /no/such/",
        ),
        (["serve", "--database", "sqlite:////no/such/dir/x.db"], "cannot be opened"),
        (["serve", "--upstream", "host/v1"], "URL"),
        (["serve", "--upstream", "http://host:99999/v1"], "URL"),
        (["serve", "--price", "m=1"], "MODEL=IN/OUT"),
        (["serve", "--price", "1/2"], "MODEL=IN/OUT"),
        (["serve", "--price", "=1/2"], "MODEL=IN/OUT"),
        (["serve", "--price", "m=1/2", "--price", "m=1/3"], "twice"),
        (["serve", "--provider", "nobody"], "openrouter"),
        (["serve", "--upstream", "https://ada:pw@host/v1"], "key"),
        (["serve", "--upstream-key", "k"], "upstream"),
    ],
)
def test_invalid_arguments_are_explained(tmp_path, arguments: list[str], says: str) -> None:
    if "--database" not in arguments:
        arguments = [*arguments, "--database", f"sqlite:///{tmp_path / 'x.db'}"]
    answer = invoke_cli(*arguments)
    assert says in failed(answer, answer.exit_code or 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--upstream", "http://x/v1", "--upstream-key", "k-secret"], "or to `none`"),
        (["--upstream", "http://x/v1", "--user-ceiling-usd", "5"], "--upstream-key"),
        (["--user-ceiling-usd", "5"], "--upstream"),
        (["--upstream", "http://x", "--upstream-key", "k", "--user-ceiling-usd", "x"], "amount"),
        (["--port", "65536"], "port"),
        (["--port", "x"], "port"),
    ],
)
def test_invalid_serve_options_are_explained(arguments: list[str], says: str) -> None:
    message = failed(invoke_cli("serve", *arguments), 2)
    assert says in message
    assert "k-secret" not in message


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "1e999999999", "1000000001"])
def test_operator_key_without_a_ceiling_is_refused(amount: str) -> None:
    options = ["--upstream", "http://x", "--upstream-key", "k", f"--user-ceiling-usd={amount}"]
    assert "finite number" in failed(invoke_cli("serve", *options))


def test_no_ceiling_needs_its_option(tmp_path) -> None:
    options = ("--upstream", f"http://{NO_SERVER}/v1", "--upstream-key", "k")
    options = (*options, "--user-ceiling-usd", "none")
    with run_service(tmp_path, *options) as service, service.app() as app:
        assert app.connect()["limits"] == {"monthlyUsd": None}


def test_weak_signing_key_is_refused(tmp_path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    env = {"WATTFARE_SERVICE_SECRET": "weak-key"}
    answer = invoke_cli("serve", "--database", database, env=env)
    message = failed(answer)
    assert "WATTFARE_SERVICE_SECRET" in message
    assert "weak-key" not in message


def test_ipv6_address_may_have_brackets(tmp_path) -> None:
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = str(taken.getsockname()[1])
        database = f"sqlite:///{tmp_path / 'x.db'}"
        options = ("--host", "[::1]", "--port", port, "--database", database)
        assert "in use" in run_cli("serve", *options).stderr


def test_port_in_use_is_reported(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        database = f"sqlite:///{tmp_path / 'x.db'}"
        answer = run_cli("serve", "--port", port, "--database", database)
    assert answer.returncode == 1
    assert "Error: " in answer.stderr
    assert "in use" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_invalid_database_is_reported(tmp_path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database" * 100)
    assert "database" in failed(invoke_cli("serve", "--database", f"sqlite:///{path}"))


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    """Runs this code in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


def test_missing_extra_is_named() -> None:
    answer = run_code(
        "import sys; sys.modules['sqlalchemy'] = None\nfrom wattfare_mw.cli import main; main()"
    )
    assert answer.returncode == 1
    assert "wattfare-mw[service]" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_ctrl_c_during_the_start_prints_no_traceback() -> None:
    answer = run_code(
        "import sys\n"
        "class Loads:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'wattfare_mw.cli.commands': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Loads())\n"
        "from wattfare_mw.cli import main; main()"
    )
    assert (answer.returncode, answer.stderr) == (1, "Aborted!\n")


def test_service_without_its_extra_says_what_to_install() -> None:
    answer = run_code("import sys; sys.modules['starlette'] = None\nimport wattfare_mw.service")
    assert "Type: pip install 'wattfare-mw[service]'" in answer.stderr


def test_sigint_stops_it_cleanly(tmp_path) -> None:
    import signal

    with run_service(tmp_path, forked=False) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0


def test_second_sigint_leaves_no_call_unsettled(tmp_path) -> None:
    import signal
    import sqlite3

    import httpx

    with run_service(tmp_path, stop_grace=60, forked=False) as service, service.app() as app:
        app.connect(monthlyUsd=1)
        body = chat_body("word " * 500, stream=True, model="wattfare/echo-slow")
        with (
            suppress(httpx.RemoteProtocolError),
            app.http.stream(
                "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
            ) as answer,
        ):
            chunks = answer.iter_bytes()
            next(chunks)
            service.process.send_signal(signal.SIGINT)
            # It accepts no more calls, so it has received the signal.
            eventually(lambda: not listens(service.url))
            service.process.send_signal(signal.SIGINT)
            list(chunks)
        assert service.process.wait(60) == 0
    ledger = sqlite3.connect(tmp_path / "wattfare.db")
    assert ledger.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
    billed, reserved = ledger.execute("SELECT billed_nanos, reserved_nanos FROM ledger").fetchone()
    assert 0 < billed < reserved
    ledger.close()


def listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def test_database_is_readable_by_its_owner_only(tmp_path) -> None:
    # It contains the key that signs session tokens.
    path = tmp_path / "x.db"
    assert (
        invoke_cli("apps", "create", "a", "--new", "--database", f"sqlite:///{path}").exit_code == 0
    )
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("grace", ["nan", "inf", "-1", "3601"])
def test_invalid_stop_grace_is_refused(tmp_path, grace: str) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    assert "grace" in failed(
        invoke_cli("serve", "--port", "0", "--stop-grace", grace, "--database", database)
    )


def test_ledger_is_verified_and_exported(tmp_path) -> None:
    import csv
    import sqlite3

    with (
        run_service(tmp_path, forked=False) as service,
        service.app() as app,
        service.app() as other,
    ):
        database = ("--database", service.database)
        app.connect("=cmd()")
        assert app.chat(user="=cmd()").status_code == 200
        other.connect()
        assert other.chat().status_code == 200
        # While the service runs.
        assert invoke_cli("ledger", "verify", *database).exit_code == 0
        mine = ("ledger", "export", *database, "--app", app.keys.app_id)
        (line,) = invoke_cli(*mine).stdout.splitlines()
        row = json.loads(line)
        assert row["user_id"] == "=cmd()"
        assert (row["billed_nanos"], row["ended"]) == (9000, "completed")
        (line,) = csv.DictReader(invoke_cli(*mine, "--format", "csv").stdout.splitlines())
        assert line["user_id"] == "'=cmd()"  # otherwise a spreadsheet would treat it as a formula
        assert invoke_cli(*mine, "--since", "2999-01-01").stdout == ""
        assert len(invoke_cli("ledger", "export", *database).stdout.splitlines()) == 2
    connection = sqlite3.connect(service.database.removeprefix("sqlite:///"))
    connection.execute("UPDATE totals SET billed_nanos = billed_nanos + 1 WHERE user_id = 'u1'")
    connection.commit()
    connection.close()
    off = invoke_cli("ledger", "verify", *database)
    assert "9001" in off.stderr
    assert "1 totals" in failed(off)
    nowhere = invoke_cli("ledger", "verify", "--database", f"sqlite:///{tmp_path / 'none.db'}")
    assert "There is no database" in failed(nowhere)
    assert not (tmp_path / "none.db").exists()


def test_command_without_its_extra_says_what_to_install() -> None:
    # The import names of the requirements in `pyproject.toml`.
    names = {"pyjwt": "jwt"}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for requirement in project["optional-dependencies"]["service"]:
        found = re.match(r"[\w-]+", requirement)
        assert found is not None
        name = names.get(found[0], found[0].replace("-", "_"))
        assert name in _NEEDED or name == "uvloop"  # which is optional
    run = run_code(
        "import sys; sys.modules['rich'] = None; from wattfare_mw.cli import main; main()"
    )
    assert run.returncode == 1
    assert "pip install 'wattfare-mw[service]'" in run.stderr
    assert "Traceback" not in run.stderr
