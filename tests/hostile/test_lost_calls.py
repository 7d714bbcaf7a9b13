"""A process dies (`kill -9`) during calls whose cost is unknown. Each call is billed its recorded
cost, never its whole reservation. The operator can see which calls these were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import RowMapping, text
from support.forked import run_forked
from support.leases import end_leases
from support.service import App, Service, eventually, run_cli
from support.sockets import send_call
from support.upstream import Exchange, Upstream, chunk_of

from wattfare_mw.service import create_keys
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.postgresql.store import PostgreSQLStore
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.store import LEASE_SECONDS, Store
from wattfare_mw.service.ledger.verify import lost_calls, verify
from wattfare_mw.service.records import Account, Bounds, GrantBudget, InferenceCall, Outcome, Terms

HOLD = 10**9
#: About half a cent, at $1 per million prompt tokens and $2 per million completion tokens.
WORDS = 2500
METERED = 11 * 1000 + WORDS * 2000


def many_words_then_hang(exchange: Exchange) -> None:
    """Sends many words at once, then nothing until the client disconnects. Each word has four
    bytes: one token."""
    exchange.start_stream()
    exchange.event(chunk_of({"choices": [{"index": 0, "delta": {"content": "wor " * WORDS}}]}))
    exchange.hang()


@contextmanager
def dying(database: str, upstream: Upstream, **settings: Any) -> Iterator[tuple[App, Any]]:
    """An app of a process that a test kills, without a check of its exit."""
    with run_forked(database=database, upstream=upstream.url, stop_grace=0, **settings) as (
        process,
        url,
    ):
        service = Service(url, database, process)  # type: ignore[arg-type]
        with App(service, create_keys(database, "test app")) as app:
            app.connect(monthlyUsd=5)
            yield app, process


def kill(process: Any, database: str) -> None:
    """Kills the process during its calls, so that others may settle them."""
    process.kill()
    process.join()
    end_leases(database)


def count(database: str, where: str) -> int:
    asked = text(f"SELECT count(*) FROM reservations WHERE {where}")
    return read_database(database, lambda sql: sql.execute(asked).scalar_one())


def rows_after(database: str, upstream: Upstream, **settings: Any) -> list[RowMapping]:
    """Returns the rows of the calls after another process has settled them."""
    with run_forked(database=database, upstream=upstream.url, stop_grace=0, **settings):
        eventually(lambda: not count(database, "1 = 1"))
    assert read_database(database, verify) == []
    return read_database(database, lambda sql: list(rows_of(sql)))


def test_each_lost_call_is_billed_its_recorded_cost(database: str, upstream: Upstream) -> None:
    """A whole answer has no recorded cost before it arrives. For a stream of a model without a
    price, only the upstream knows the cost so far."""
    upstream.script = lambda exchange: (
        many_words_then_hang(exchange) if exchange.json.get("stream") else exchange.hang()
    )
    plugins = [{"id": "web"}]
    with dying(database, upstream, allow_unpriced=True) as (app, process):
        asked = {
            "stream": {"stream": True, "plugins": plugins},
            "whole": {"plugins": plugins},
            "unpriced": {"stream": True, "model": "fake/unpriced"},
            "plain": {"max_tokens": 100},
        }
        visitors = [
            send_call(
                app, {"x-request-id": name}, **{"user": name, "max_tokens": 100_000, **fields}
            )
            for name, fields in asked.items()
        ]
        eventually(lambda: len(upstream.calls) == len(asked))
        visitors[2].wait_for(b"wor ")
        # Half a cent is less than a tenth of the reservation.
        eventually(lambda: count(database, f"metered_nanos = {METERED}"))
        kill(process, database)
        for visitor in visitors:
            visitor.leave()
    rows = {row["request_id"]: row for row in rows_after(database, upstream)}
    ended = {name: (row["ended"], row["billed_nanos"]) for name, row in rows.items()}
    assert ended == {
        "stream": ("lost", METERED),
        "whole": ("lost", 0),
        "unpriced": ("lost", 0),
        "plain": ("abandoned", rows["plain"]["reserved_nanos"]),
    }
    assert {rows[name]["reserved_nanos"] for name in ("stream", "whole", "unpriced")} == {HOLD}

    verified = run_cli("ledger", "verify", "--database", database)
    assert verified.returncode == 0, verified.stderr
    assert "The ledger is consistent" in verified.stdout
    listed = [line for line in verified.stdout.splitlines() if "process died" in line]
    assert len(listed) == 3
    assert any(f"{METERED} of {HOLD} held" in line and "=stream" in line for line in listed)


def test_openrouter_record_is_read_before_a_lost_call_is_settled(
    database: str, upstream: Upstream
) -> None:
    def named(exchange: Exchange) -> None:
        exchange.start_stream()
        delta = {"index": 0, "delta": {"content": "one "}}
        exchange.event(chunk_of({"id": "gen-1", "choices": [delta]}))
        exchange.hang()

    upstream.script = named
    settings = {"provider": "openrouter"}
    with dying(database, upstream, **settings) as (app, process):
        visitor = send_call(
            app, {"x-request-id": "r1"}, stream=True, plugins=[{"id": "web"}], max_tokens=100_000
        )
        eventually(lambda: count(database, "generation_id = 'gen-1'"))
        kill(process, database)
        visitor.leave()
    record = {"data": {"id": "gen-1", "total_cost": 0.25}}
    upstream.record_script = lambda exchange: exchange.answer(record)
    [row] = rows_after(database, upstream, **settings)
    assert (row["ended"], row["billed_nanos"]) == ("recovered", 250_000_000)
    assert read_database(database, lost_calls) == []


@pytest.mark.parametrize("payer", ["user", "grant"])
async def test_process_declared_dead_corrects_the_bill(database: str, payer: str) -> None:
    now = datetime.now(UTC)
    app = create_keys(database, "test app").app_id

    def clock() -> datetime:
        return now

    stores = [store_at(database, clock) for _ in range(2)]
    await stores[0].connect(app, "u1", 5 * HOLD)
    for store in stores:
        await store.renew()
    by_user = payer == "user"
    if not by_user:
        expires = int((now + timedelta(days=1)).timestamp())
        await stores[0].add_grant(app, "g1", GrantBudget(1, 2 * HOLD, expires))
    call = InferenceCall(
        id="c1",
        app_id=app,
        user_id="u1" if by_user else None,
        grant_hash=None if by_user else "g1",
        model="m",
        bounds=Bounds(5, 10).holding(HOLD),
        request_id="r",
    )
    assert (await stores[0].reserve(call, Terms())).amount == HOLD
    now += timedelta(seconds=LEASE_SECONDS + 1)
    await stores[1].renew()
    assert await stores[1].sweep() == 1
    assert len(await stores[1].transact(lost_calls)) == 1
    outcome = Outcome(ended="completed", generated=True, cost=HOLD // 4)
    payer_ = Account(app, call.user_id, call.grant_hash)
    assert await stores[0].correct("c1", payer_, outcome, Terms()) == HOLD // 4
    assert await stores[0].correct("c1", payer_, outcome, Terms()) is None
    assert await stores[1].transact(lost_calls) == []  # its cost is known now
    assert await stores[1].transact(verify) == []
    for store in stores:
        await store.close()


def store_at(database: str, clock: Any) -> Store:
    if database.startswith("sqlite"):
        return SQLiteStore(database, clock=clock)
    return PostgreSQLStore(database, clock)
