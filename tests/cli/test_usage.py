"""`wattfare usage`: what each app and user spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import invoke_cli
from support.postgres import Cluster
from support.service import bearer, eventually, run_service

from wattfare_mw.service.ledger import rules
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.ledger.databases import create_keys, migrate_database


def test_usage_lists_each_app_and_user(tmp_path: Path) -> None:
    with run_service(tmp_path) as service:
        first, second = (service.create_app(name=name) for name in ("First", "[red]Second"))
        with service.app() as app:
            app.keys = first
            app.connect("ann")
            app.connect("bob\u202e")
            for _ in range(3):
                assert app.chat("one two three", user="ann").status_code == 200
            headers = {**app.auth, "x-wattfare-user": "bob%E2%80%AE"}
            call = {"model": "wattfare/echo", "messages": [{"role": "user", "content": "x"}]}
            assert app.http.post("/chat/completions", json=call, headers=headers).status_code == 200
            app.chat(user="nobody")
            key = bearer(first.publishable_key)
            grant = app.http.post("/grants", json={"requests": 1}, headers=key).json()
            paid = {**app.auth, "x-wattfare-grant": grant["grantToken"]}
            assert app.http.post("/chat/completions", json=call, headers=paid).status_code == 200
        database = ("--database", service.database)
        answer = json.loads(invoke_cli("usage", "--json", *database).stdout)
        apps = {each["name"]: each for each in answer["apps"]}
        mine, other = apps["First"], apps["[red]Second"]
        assert answer["month"] == rules.month_of(utc_now())
        assert answer["month_usd"] == mine["month_usd"] == mine["total_usd"] == 0.000033
        assert [(user["user_id"], user["calls"]) for user in mine["users"]] == [
            ("ann", 3),
            (None, 1),
            ("bob\u202e", 1),
        ]
        ann = mine["users"][0]
        assert (ann["prompt_tokens"], ann["completion_tokens"]) == (9, 9)
        assert ann["month_usd"] == ann["total_usd"] == 0.000027
        assert (other["calls"], other["users"]) == (0, [])

        # In another month, the month's amount is zero and the total is the same.
        arguments = ("usage", "First", "--month", "2020-01", "--json", *database)
        before = json.loads(invoke_cli(*arguments).stdout)
        [mine] = before["apps"]
        assert (mine["calls"], mine["month_usd"], mine["total_usd"]) == (0, 0, 0.000033)

        shown = invoke_cli("usage", *database).stdout
        assert "[red]Second" in shown
        assert "0.000027" in shown
        assert "\u202e" not in shown
        assert "(one-time grants)" in shown
        only = invoke_cli("usage", second.app_id, *database).stdout
        assert "First" not in only


def test_invalid_arguments_are_explained(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    keys = create_keys(database, "twice")
    create_keys(database, "twice")
    for arguments, says in (
        (["nosuchapp"], "apps list"),
        (["twice"], keys.app_id),
        ([keys.secret_key], "Give the app's id"),
        (["--month", "2026-13"], "2026-11"),
        (["--month", "last"], "2026-11"),
    ):
        answer = invoke_cli("usage", *arguments, "--database", database)
        assert answer.exit_code in (1, 2)
        assert says in answer.stderr
        assert keys.secret_key not in answer.stderr


# -- the log


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_has_the_cost_of_each_call(tmp_path: Path, form: str) -> None:
    database, env = f"sqlite:///{tmp_path / 'new.db'}", {"WATTFARE_LOG_FORMAT": form}
    with run_service(tmp_path, database=database, env=env) as service:
        with service.app() as app:
            user = 'ann cost_usd=9"\n'
            app.connect(user)
            headers = {**app.auth, "x-wattfare-user": "ann%20cost_usd=9%22%0A"}
            for stream in (False, True):
                body = {
                    "model": "wattfare/echo",
                    "stream": stream,
                    "messages": [{"role": "user", "content": "one two three"}],
                }
                app.http.post("/chat/completions", json=body, headers=headers)
            assert app.chat(user="stranger").status_code == 402
            app_id, key = app.keys.app_id, app.keys.secret_key

        def calls() -> list[str]:
            found = [line for line in service.log if "/chat/completions" in line]
            return found if len(found) == 3 else []

        lines = eventually(calls)
    assert key not in "".join(service.log)
    assert any(f"created a new database: {tmp_path}" in line for line in service.log)
    if form == "text":
        for line in lines[:2]:
            assert (
                f' app={app_id} user="ann cost_usd=9\\"\\n" model=wattfare/echo'
                " prompt_tokens=3 completion_tokens=3 cost_usd=0.000009 ended=completed" in line
            )
        assert "user=stranger model=wattfare/echo code=not_connected" in lines[2]
        return
    for line in service.log:
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))
    for line in lines[:2]:
        record = json.loads(line)
        assert (record["app"], record["user"]) == (app_id, user)
        assert (record["prompt_tokens"], record["completion_tokens"]) == (3, 3)
        assert (record["cost_usd"], record["status"]) == (0.000009, 200)
    assert json.loads(lines[2])["code"] == "not_connected"


def test_usage_reads_a_postgresql_ledger(cluster: Cluster, tmp_path: Path) -> None:
    url = cluster.database()
    migrate_database(url)
    with run_service(tmp_path, database=url) as service, service.app() as app:
        app.connect("ann")
        assert app.chat(user="ann").status_code == 200
        [mine] = json.loads(invoke_cli("usage", "--json", "--database", url).stdout)["apps"]
    assert [(one["user_id"], one["total_usd"]) for one in mine["users"]] == [("ann", 0.000009)]
