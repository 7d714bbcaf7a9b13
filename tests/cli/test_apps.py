"""`wattfare apps`: key rotation without downtime, origins, and the deletion of an app."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.cli import invoke_cli
from support.pace import Pace
from support.service import App, Service, bearer, eventually, run_service
from support.sqlite import sqlite_database

from wattfare_mw.service import AppKeys, create_keys

#: Seconds for which a running service may still accept a revoked key, and the margin for the
#: requests of the test.
STATED, SLACK = 1.0, 2.0


def run(database: str, *arguments: str, **more: Any) -> Result:
    return invoke_cli("apps", *arguments, "--database", database, **more)


def done(database: str, *arguments: str) -> Any:
    """Runs the command, which must succeed. Returns its output as JSON."""
    answer = run(database, *arguments)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout) if "--json" in arguments else answer.stdout


def refused(database: str, *arguments: str) -> str:
    """Runs the command, which must fail without a traceback or a secret. Returns its message."""
    answer = run(database, *arguments)
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert answer.exit_code == 1
    assert answer.stdout == ""
    return answer.stderr


@pytest.fixture
def keys(database: str) -> AppKeys:
    return create_keys(database, "My app", "live", ["https://app.example.com"])


# -- create and list


def test_app_with_origins_is_listed(database: str) -> None:
    origins = ["https://app.example.com", "http://localhost:5000"]
    named = [word for origin in origins for word in ("--origin", origin)]
    made = done(database, "create", "[bold]Shop", "--mode", "live", *named, "--json")
    assert set(made) == {"appId", "publishableKey", "secretKey"}
    (listed,) = done(database, "list", "--json")
    assert listed["appId"] == made["appId"]
    assert listed["name"] == "[bold]Shop"
    assert listed["mode"] == "live"
    assert listed["publishableKey"] == made["publishableKey"]
    assert listed["secretKeys"] == 1
    assert sorted(listed["origins"]) == sorted(origins)
    table = done(database, "list")
    assert "[bold]Shop" in table
    assert made["appId"] in table
    assert all(origin in table for origin in origins)
    assert made["secretKey"] not in table


def test_live_app_without_an_origin_says_what_to_do(tmp_path: Path) -> None:
    answer = run(
        f"sqlite:///{tmp_path / 'x.db'}", "create", "x", "--new", "--mode", "live", "--json"
    )
    assert answer.exit_code == 0
    app_id = json.loads(answer.stdout)["appId"]
    assert f"wattfare apps add-origin {app_id}" in answer.stderr


@pytest.mark.parametrize(
    ("origin", "says"),
    [
        ("https://app.example.com/x/", "path"),
        ("https://app.example.com/pay", "path"),
        ("app.example.com", "not an origin"),
        ("https://*.example.com", "wildcard"),
        ("https://App.example.com", "lower case"),
        ("https://app.example.com:443", "default"),
        ("https://ada@app.example.com", "not an origin"),
        ("http://app.example.com", "not encrypted"),
        ("https://app.example.com.", "end with a dot"),
        ("http://localhost.example.com", "not encrypted"),
        ("http://192.168.1.4:8000", "not encrypted"),
        ("capacitor://localhost", "web page"),
        ("javascript:alert(1)", "null"),
        ("null", "hides its origin"),
        ("", "not an origin"),
    ],
)
def test_invalid_origin_creates_no_app(tmp_path: Path, origin: str, says: str) -> None:
    database = sqlite_database(tmp_path)
    assert says in refused(database, "create", "x", "--new", "--origin", origin)
    assert done(database, "list", "--json") == []


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com:8443",
        "http://127.0.0.1:5000",
        "http://[::1]:5000",
        "https://xn--p8j",
    ],
)
def test_valid_origins_are_accepted(tmp_path: Path, origin: str) -> None:
    database = sqlite_database(tmp_path, "x.db")
    done(database, "create", "x", "--new", "--origin", origin, "--origin", origin)
    assert done(database, "list", "--json")[0]["origins"] == [origin]


def test_trailing_slash_is_removed(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path)
    app_id = done(
        database,
        *("create", "x", "--new", "--json"),
        *("--origin", "http://localhost:5000/", "--origin", "http://localhost:5000"),
    )["appId"]
    done(database, "add-origin", app_id, "https://app.example.com/")
    origins = ["http://localhost:5000", "https://app.example.com"]
    assert done(database, "list", "--json")[0]["origins"] == origins
    done(database, "remove-origin", app_id, "http://localhost:5000/")
    assert done(database, "list", "--json")[0]["origins"] == origins[1:]
    for origin in ("https://app.example.com//", "https://app.example.com/x/", "https:///", "/"):
        refused(database, "add-origin", app_id, origin)


def test_origins_are_added_and_removed(database: str, keys: AppKeys) -> None:
    done(database, "add-origin", keys.app_id, "https://b.example.com", "https://app.example.com")
    assert "no origin" in refused(database, "remove-origin", keys.app_id, "https://c.example.com")
    assert "path" in refused(database, "add-origin", keys.app_id, "https://b.example.com/x")
    done(database, "remove-origin", keys.app_id, "https://app.example.com")
    assert done(database, "list", "--json")[0]["origins"] == ["https://b.example.com"]


def test_list_without_apps_is_empty(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    assert "There is no database" in refused(database, "list")
    assert not (tmp_path / "x.db").exists()
    database = sqlite_database(tmp_path)
    answer = run(database, "list")
    assert answer.exit_code == 0
    assert "wattfare apps create" in answer.stderr


# -- keys


def test_two_keys_are_valid_during_a_rotation(database: str, keys: AppKeys, tmp_path) -> None:
    with run_service(tmp_path, database=database) as service, App(service, keys) as app:
        assert opens(app, keys.secret_key)
        second = done(database, "rotate-key", keys.app_id, "--json")
        assert set(second) == {"appId", "secretKey"}
        assert second["secretKey"].startswith(f"sk_live_{keys.app_id}_")
        soon(lambda: opens(app, second["secretKey"]))
        assert opens(app, keys.secret_key)
        assert done(database, "list", "--json")[0]["secretKeys"] == 2

        assert "revoke-key" in refused(database, "rotate-key", keys.app_id)
        done(database, "revoke-key", keys.app_id)
        soon(lambda: not opens(app, keys.secret_key))
        assert opens(app, second["secretKey"])
        assert "rotate-key" in refused(database, "revoke-key", keys.app_id)
        assert done(database, "list", "--json")[0]["secretKeys"] == 1


def test_newest_key_can_be_revoked(database: str, keys: AppKeys, tmp_path: Path) -> None:
    with run_service(tmp_path, database=database) as service, App(service, keys) as app:
        second = done(database, "rotate-key", keys.app_id, "--json")
        soon(lambda: opens(app, second["secretKey"]))
        done(database, "revoke-key", keys.app_id, "--newest")
        soon(lambda: not opens(app, second["secretKey"]))
        assert opens(app, keys.secret_key)


def test_key_is_shown_once(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path, "x.db")
    keys = create_keys(database, "x")
    answer = run(database, "rotate-key", keys.app_id)
    second = answer.stdout.split()[-1]
    assert second.startswith("sk_test_")
    assert second not in answer.stderr
    assert "cannot be shown again" in answer.stderr
    with sqlite3.connect(tmp_path / "x.db") as file:
        kept = "\n".join(file.iterdump())
    file.close()
    assert keys.app_id in kept
    for key in (second, keys.secret_key):
        assert key.rpartition("_")[2] not in kept


def test_one_of_many_concurrent_rotations_succeeds(database: str, keys: AppKeys) -> None:
    answers: list[Result] = []
    start = threading.Barrier(4)

    def rotate() -> None:
        from wattfare_mw.errors import WattfareError
        from wattfare_mw.service.ledger import apps
        from wattfare_mw.service.ledger.databases import change_database

        start.wait()
        try:
            answers.append(change_database(database, lambda sql: apps.rotate_key(sql, keys.app_id)))
        except WattfareError as error:
            assert "two" in error.message.lower()  # noqa: PT017

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 1


@pytest.mark.parametrize("command", ["rotate-key", "revoke-key", "delete", "add-origin"])
def test_unknown_app_is_refused(tmp_path: Path, command: str) -> None:
    database = sqlite_database(tmp_path, "x.db")
    keys = create_keys(database, "x")
    more = {"delete": ["--yes"], "add-origin": ["https://a.example.com"]}.get(command, [])
    assert "apps list" in refused(database, command, "nosuchapp", *more)
    # A key in place of the id is an easy mistake.
    message = refused(database, command, keys.secret_key, *more)
    assert "needs the app's id" in message
    assert keys.secret_key not in message
    away = f"sqlite:///{tmp_path / 'y.db'}"
    assert "There is no database" in refused(away, command, keys.app_id, *more)
    assert not (tmp_path / "y.db").exists()


# -- deletion


def test_deleted_app_is_refused_everywhere(database: str, tmp_path: Path) -> None:
    with run_service(tmp_path, database=database) as service:
        keys = create_keys(database, "x")
        with App(service, keys) as app, service.app() as other:
            app.connect("u1", monthlyUsd=1)
            other.connect("u1", monthlyUsd=1)
            grant = app.http.post(
                "/grants", json={"requests": 5}, headers=bearer(keys.publishable_key)
            ).json()["grantToken"]
            token = app.token("u1")
            assert "1 budget is" in done(database, "delete", keys.app_id, "--yes")
            soon(lambda: not opens(app, keys.secret_key))
            assert app.chat().status_code == 401
            for method, path, credential in (
                ("GET", "/connections", token),
                ("POST", "/connections", token),
                ("POST", "/grants", keys.publishable_key),
            ):
                answer = app.http.request(method, path, json={}, headers=bearer(credential))
                assert answer.status_code == 401, (method, path, answer.text)
            body = {"model": "wattfare/echo", "messages": [{"role": "user", "content": "x"}]}
            paid = {**bearer(keys.secret_key), "x-wattfare-grant": grant}
            assert app.http.post("/chat/completions", json=body, headers=paid).status_code == 401
            assert other.chat().status_code == 200
            assert other.status("u1")["connected"] is True
    assert "is deleted" in refused(database, "delete", keys.app_id, "--yes")
    assert "is deleted" in refused(database, "rotate-key", keys.app_id)
    assert keys.app_id not in {each["appId"] for each in done(database, "list", "--json")}
    assert "deleted" in done(database, "list", "--deleted")


def test_stream_of_a_deleted_app_ends(tmp_path: Path) -> None:
    with run_service(tmp_path) as service, service.app() as app:
        app.connect("u1", monthlyUsd=1)
        words = " ".join(["word"] * 400)  # 20 seconds
        body = {
            "model": "wattfare/echo-slow",
            "stream": True,
            "messages": [{"role": "user", "content": words}],
        }
        with app.http.stream(
            "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            with Pace() as pace:
                done(service.database, "delete", app.keys.app_id, "--yes")
                pace.since()
                began = time.monotonic()
                rest = list(lines)
                assert pace.on_idle(time.monotonic() - began) < STATED + SLACK
        assert "data: [DONE]" not in rest


def test_delete_needs_confirmation(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path, "x.db")
    keys = create_keys(database, "x")
    answer = run(database, "delete", keys.app_id)  # and the input ends without an answer
    assert answer.exit_code == 1
    assert done(database, "list", "--json")[0]["appId"] == keys.app_id


def opens(app: App, secret_key: str) -> bool:
    answer = app.http.get("/models", headers=bearer(secret_key))
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


def soon(condition: Any) -> None:
    """Waits until the condition holds, within the time that the command states."""
    with Pace() as pace:
        began = time.monotonic()
        eventually(condition)
        assert pace.on_idle(time.monotonic() - began) < STATED + SLACK


def test_stated_time_matches_the_service(service: Service, tmp_path: Path) -> None:
    database = sqlite_database(tmp_path, "x.db")
    keys = create_keys(database, "x")
    done(database, "rotate-key", keys.app_id)
    assert f"within {STATED:g} second" in done(database, "revoke-key", keys.app_id)
