"""`wattfare dev`: the first billed call, and one line on screen for each call."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.cli import invoke_cli
from support.dev import run_dev
from support.patience import PATIENCE
from support.ports import refused_port
from support.service import chat_body, environment, obey_ctrl_c
from support.upstream import run_upstream

from wattfare_mw import (
    Wattfare,
    WattfareAuthError,
    WattfareNetworkError,
    WattfareNotConnectedError,
)
from wattfare_mw.service import create_keys


def test_first_line_has_everything_that_an_app_needs(tmp_path: Path) -> None:
    with run_dev(tmp_path) as dev, dev.app() as app:
        assert set(dev.ready) >= {"url", "secret_key", "publishable_key", "app_id", "database"}
        assert dev.ready["database"] == f"sqlite:///{tmp_path / 'wattfare.db'}"
        assert dev.secret_key.startswith("sk_test_")
        assert app.status("ann")["limits"] == {"monthlyUsd": 5}
        assert app.chat("one two", user="ann").status_code == 200
        call = dev.next_call()
        assert call.pop("request_id")
        assert call == {
            "event": "call",
            "app_id": dev.ready["app_id"],
            "user": "ann",
            "grant": None,
            "model": "wattfare/echo",
            "stream": False,
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "cost_usd": 0.000006,
            "left_usd": 4.999994,
            "ended": "completed",
            "code": None,
        }


def test_refused_call_has_a_line_with_its_code(tmp_path: Path) -> None:
    with run_dev(tmp_path) as dev, dev.app() as app:
        assert app.chat(user="bob").status_code == 402
        refused = dev.next_line()
        assert refused.pop("request_id")
        assert refused == {
            "event": "refused",
            "app_id": dev.ready["app_id"],
            "user": "bob",
            "grant": None,
            "model": "wattfare/echo",
            "stream": False,
            "code": "not_connected",
            "left_usd": 0,
        }
        app.connect("bob", monthlyUsd=1)
        with app.http.stream(
            "POST", "/chat/completions", json=chat_body(stream=True), headers=app.paid_by("bob")
        ) as answer:
            answer.read()
        call = dev.next_call()
    assert (call["user"], call["stream"], call["cost_usd"]) == ("bob", True, 0.000009)
    assert call["left_usd"] == 0.999991


def test_full_pipe_blocks_no_call(tmp_path: Path) -> None:
    model = "wattfare/echo"
    with run_dev(tmp_path) as dev, dev.app() as app:
        user = "u" * 250
        app.connect(user)
        for _ in range(200):  # more than a pipe holds
            assert app.chat("x", user=user, model=model).status_code == 200
        for _ in range(200):
            dev.next_call()


def test_restart_keeps_the_keys(tmp_path: Path) -> None:
    with run_dev(tmp_path) as dev:
        first = dev.ready
    file = tmp_path / "wattfare.db.dev-key"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)  # as after a copy
    with run_dev(tmp_path, "--user", "bob") as dev, dev.app() as app:
        assert dev.secret_key == first["secret_key"]
        assert app.status("bob")["connected"] is True
    assert file.stat().st_mode & 0o777 == 0o600
    assert first["secret_key"].encode() not in (tmp_path / "wattfare.db").read_bytes()


@pytest.mark.parametrize("kept", ["", "{}", '{"appId": "", "publishableKey": "", "secretKey": ""}'])
def test_invalid_key_file_creates_a_new_app(tmp_path: Path, kept: str) -> None:
    create_keys(f"sqlite:///{tmp_path / 'wattfare.db'}", "mine")
    (tmp_path / "wattfare.db.dev-key").write_text(kept)
    with run_dev(tmp_path) as dev, dev.app() as app:
        assert app.chat(user="ann").status_code == 200
    assert "wattfare.db.dev-key are not for this database" in "".join(dev.log)


def test_log_can_be_json(tmp_path: Path) -> None:
    with run_dev(tmp_path, "--log-level", "info", "--log-format", "json") as dev, dev.app() as app:
        assert app.chat("one two", user="ann").status_code == 200
    (call,) = [line for line in map(json.loads, dev.log) if "cost_usd" in line]
    assert (call["user"], call["cost_usd"]) == ("ann", 0.000006)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    file, other = tmp_path / "wattfare.db", tmp_path / "other.db"
    other.write_bytes(b"this is not a database" * 100)
    answer = invoke_cli("dev", "--database", f"sqlite:///{other}")
    assert f"The database {other} cannot be opened" in answer.stderr
    assert "--database sqlite:////path/to/wattfare.db" in answer.stderr

    keys = tmp_path / "wattfare.db.dev-key"
    keys.mkdir()
    answer = invoke_cli("dev", "--database", f"sqlite:///{file}")
    assert f"{keys}: Is a directory" in answer.stderr
    assert list(tmp_path.glob("*.dev-key.*")) == []  # no secret is left behind


def test_changed_cap_survives_a_restart(tmp_path: Path) -> None:
    with run_dev(tmp_path) as dev, dev.app() as app:
        app.connect("ann", monthlyUsd=2)
    with run_dev(tmp_path) as dev, dev.app() as app:
        assert app.status("ann")["limits"] == {"monthlyUsd": 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_terminal_output_for_a_person(tmp_path: Path, number: int) -> None:
    arguments = ["-m", "wattfare_mw.cli", "dev", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment({"no_proxy": "127.0.0.1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_ctrl_c,
    )
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    assert process.stdout is not None
    shown = ""
    while "left\n" not in shown:
        line = process.stdout.readline()
        assert line, process.communicate()
        shown += line
    assert f"{tmp_path / 'wattfare.db'} (new)" in shown
    assert re.search(r"^export WATTFARE_SECRET_KEY=sk_test_\w+$", shown, re.MULTILINE)
    assert re.search(r"^export WATTFARE_BASE_URL=http://127.0.0.1:\d+$", shown, re.MULTILINE)
    command = shown[shown.index("curl ") :].split("\n\n")[0]
    if shutil.which("curl") is not None:
        # In a terminal without the two export lines.
        run = ["bash", "-c", command]
        done = subprocess.run(run, capture_output=True, check=True, env=environment())
        assert json.loads(done.stdout)["usage"]["cost"] == 0.000015
        line = process.stdout.readline()
        assert re.search(r"ann +wattfare/echo +5\+5 +\$0\.000015 +\$4\.999985$", line), line
    key, url = re.findall(r"^export \w+=(\S+)$", shown, re.MULTILINE)
    with Wattfare(key, base_url=url) as wf:
        model = wf.user("[red]7 8").model("wattfare/echo")
        for _ in range(2):
            with pytest.raises(WattfareNotConnectedError):
                model.generate("hi")
        wf.user("ann").model("wattfare/echo").generate("hi")
    process.send_signal(number)
    rest, errors = process.communicate(timeout=PATIENCE)
    timer.cancel()
    assert rest.count("refused: not_connected") == 2
    assert rest.count("again with --user '[red]7 8', or") == 1
    assert process.returncode == 0
    assert "has stopped" in rest
    assert "\x1b" not in shown + rest
    assert errors == ""


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with run_dev(tmp_path) as dev:
        port = dev.url.rpartition(":")[2]
        for command in ("dev", "serve"):
            file = f"sqlite:///{tmp_path / 'other.db'}"
            answer = invoke_cli(command, "--port", port, "--database", file)
            assert isinstance(answer.exception, SystemExit), answer.exception
            assert answer.exit_code == 1
            assert f"Port {port} is in use" in answer.stderr
            assert f"wattfare {command} --port 0" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--database", "postgresql://localhost/x"], "wattfare serve"),
        (["--database", "sqlite://"], "needs an SQLite file"),
        (["--cap-usd", "much"], "amount in USD"),
        (["--user", ""], "user"),
        (["--upstream", "nonsense"], "URL"),
        (["--upstream-key", "k"], "upstream"),
    ],
)
def test_invalid_arguments_are_explained(tmp_path: Path, arguments: list[str], says: str) -> None:
    file = f"sqlite:///{tmp_path / 'x.db'}"
    database = [] if "--database" in arguments else ["--database", file]
    answer = invoke_cli("dev", *arguments, *database)
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert says in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_only_the_database_that_works() -> None:
    shown = " ".join(invoke_cli("dev", "--help").stdout.split())
    assert "The ledger, in an SQLite file: sqlite:///path." in shown
    assert "postgresql" not in shown


# -- a second database is never created by accident


@pytest.mark.parametrize(
    "command",
    [
        ["apps", "create", "My app"],
        ["apps", "list"],
        ["apps", "rotate-key", "x"],
        ["migrate"],
        ["usage"],
        ["ledger", "verify"],
        ["ledger", "export"],
    ],
)
def test_other_commands_create_no_second_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = invoke_cli(*command)
    assert answer.exit_code == 1
    assert str(tmp_path / "wattfare.db") in answer.stderr
    assert "--database sqlite:////path/to/wattfare.db" in answer.stderr
    assert "wattfare dev" in answer.stderr
    assert os.listdir(tmp_path) == []


def test_new_database_can_be_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke_cli("apps", "create", "My app", "--new").exit_code == 0
    assert invoke_cli("apps", "create", "Another one").exit_code == 0
    assert os.listdir(tmp_path) == ["wattfare.db"]


# -- with an upstream


def test_upstream_and_its_prices_are_used(tmp_path: Path) -> None:
    with run_upstream() as upstream:
        given = ("--upstream", upstream.url, "--price", "my/model=1/2")
        with run_dev(tmp_path, *given) as dev, dev.app() as app:
            assert app.chat(user="ann", model="my/model").status_code == 200
            assert dev.next_call()["model"] == "my/model"


# -- an app with a wrong configuration


def test_key_of_another_service_is_explained(tmp_path: Path) -> None:
    other = create_keys(f"sqlite:///{tmp_path / 'other.db'}", "another").secret_key
    with (
        run_dev(tmp_path) as dev,
        Wattfare(other, base_url=dev.url) as wf,
        pytest.raises(WattfareAuthError) as caught,
    ):
        wf.user("ann").status()
    assert "does not know this secret key" in caught.value.message
    [note] = caught.value.__notes__
    assert dev.url in note
    assert "wattfare doctor" in note
    assert other not in note
    # A browser may see the message, but not the address.
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "wattfare dev"),
        (None, "wattfare_environment = true"),
        ("pk_test_1_2", "publishable key"),
        ("hunter2", "begins with 'sk_'"),
    ],
)
def test_missing_secret_key_is_explained(
    monkeypatch: pytest.MonkeyPatch, key: str | None, says: str
) -> None:
    monkeypatch.delenv("WATTFARE_SECRET_KEY", raising=False)
    with pytest.raises(WattfareAuthError) as caught:
        Wattfare(key)
    assert says in caught.value.message
    assert "hunter2" not in caught.value.message


def test_stopped_service_is_explained() -> None:
    with (
        Wattfare("sk_test_1_2", base_url=f"http://127.0.0.1:{refused_port()}", max_retries=0) as wf,
        pytest.raises(WattfareNetworkError) as caught,
    ):
        wf.user("ann").status()
    assert "wattfare dev" in caught.value.message
    assert "wattfare dev" not in str(caught.value.to_wire())
