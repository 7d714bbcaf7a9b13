"""If a process pauses or a clock is changed, a user is still billed only the cost of each call."""

from __future__ import annotations

import signal
import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.http_client import http_client
from support.servers import uvicorn_server
from support.service import (
    App,
    Service,
    bearer,
    chat_body,
    eventually,
    run_cli,
    run_service,
)
from support.upstream import Exchange, Upstream, completion_of

from wattfare_mw.service import Settings, create_app, create_keys
from wattfare_mw.service.ledger import clock
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.sqlite import store
from wattfare_mw.service.ledger.verify import verify

#: The cost that the upstream reports, in nano-dollars.
COST = 12_000
CAP = 2


def ledger(database: str) -> list[dict[str, Any]]:
    return read_database(database, lambda sql: [dict(row) for row in rows_of(sql)])


def test_paused_process_declared_dead_corrects_the_bills(
    tmp_path: Path, database: str, upstream: Upstream
) -> None:
    """Tests a stream and a call that is answered at once."""
    asked, resumed = threading.Semaphore(0), threading.Event()

    def answer(exchange: Exchange) -> None:
        stream = exchange.json["stream"]
        if stream:
            exchange.start_stream()
            exchange.word("w ")
        asked.release()
        resumed.wait(60)
        if stream:
            exchange.usage({"prompt_tokens": 4, "completion_tokens": 4, "cost": COST / 10**9})
            exchange.done()
        else:
            usage = {"prompt_tokens": 4, "completion_tokens": 4, "cost": COST / 10**9}
            exchange.answer(completion_of("x", usage=usage))

    upstream.script = answer
    with (
        run_service(tmp_path, "--upstream", upstream.url, database=database) as pausing,
        run_service(tmp_path, "--upstream", upstream.url, database=database) as other,
        pausing.app() as app,
    ):
        app.connect(monthlyUsd=CAP)
        clients = [threading.Thread(target=call, args=(app, stream)) for stream in (False, True)]
        for client in clients:
            client.start()
        for _ in clients:
            assert asked.acquire(timeout=60)
        pause(pausing.process, database)
        try:
            assumed = eventually(lambda: rows_if_count(2, ledger(database)))
        finally:
            pausing.process.send_signal(signal.SIGCONT)
        assert {row["ended"] for row in assumed} == {"expired", "abandoned"}
        rows = eventually(lambda: rows_if_count(4, ledger(database)))
        resumed.set()
        for client in clients:
            client.join(60)
        corrections = {row["corrects"]: row for row in rows[2:]}
        total = 0
        for row in assumed:
            assert row in rows[:2]
            correction = corrections[row["id"]]
            assert correction["month"] == row["month"]
            billed = row["billed_nanos"] + correction["billed_nanos"]
            # The model got the prompt, and a part of the answer arrived.
            assert 0 < billed < 100_000
            total += billed
        assert app.status()["usage"]["monthlyUsd"] == total / 10**9
        assert other_serves(other, app)
    assert "consistent" in run_cli("ledger", "verify", "--database", database).stdout


def pause(process: Any, database: str) -> None:
    """Stops a process outside of a transaction.

    A process stopped within a transaction keeps its locks. SQLite then lets no other process write
    until it continues: see docs/deployment.md.
    """
    if not database.startswith("sqlite"):  # each write of a call is one statement
        process.send_signal(signal.SIGSTOP)
        return
    probe = sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None, timeout=2)
    with closing(probe):
        while True:
            process.send_signal(signal.SIGSTOP)
            try:
                probe.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
            else:
                probe.execute("ROLLBACK")
                return


def rows_if_count(number: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows if len(rows) == number else []


def call(app: App, stream: bool) -> None:
    app.http.post(
        "/chat/completions",
        json=chat_body("hi", model="fake/model", max_tokens=400_000, stream=stream),
        headers=app.paid_by("u1"),
    )


def other_serves(other: Service, app: App) -> bool:
    answer = app.http.get(f"{other.api}/status", params={"appUserId": "u1"}, headers=app.auth)
    return answer.status_code == 200


@pytest.mark.skipif(not clock._boot_id(), reason="the system has no clock that is never set")
@pytest.mark.parametrize("step", [30, -30, 3600, -3600])
def test_clock_change_cuts_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    ahead = timedelta()

    def wall_clock() -> datetime:
        return clock.utc_now() + ahead

    monkeypatch.setattr(store, "utc_now", wall_clock)
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    keys = create_keys(database, "app")
    auth = bearer(keys.secret_key) | {"x-wattfare-user": "u1"}
    with uvicorn_server(create_app(Settings(database=database))) as (host, port):
        api = f"http://{host}:{port}/api/v1"
        http = http_client(base_url=api)
        with http:
            token = http.post("/sessions", json={"appUserId": "u1"}, headers=auth).json()["token"]
            http.post("/connections", json={"monthlyUsd": 1}, headers=bearer(token))
            words = "w " * 30
            body = chat_body(words, model="wattfare/echo-slow", stream=True)
            with http.stream("POST", "/chat/completions", json=body, headers=auth) as answer:
                pieces = answer.iter_bytes()
                text = next(pieces)
                ahead = timedelta(seconds=step)  # renewals and sweeps continue in the meantime
                text += b"".join(pieces)
            assert text.endswith(b"data: [DONE]\n\n")
            body = chat_body("w")
            assert http.post("/chat/completions", json=body, headers=auth).status_code == 200
    assert [row["ended"] for row in ledger(database)] == ["completed", "completed"]
    assert read_database(database, verify) == []
