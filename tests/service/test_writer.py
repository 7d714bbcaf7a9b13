"""The writer of SQLite: jobs that share a commit are otherwise independent, every job runs, and the
event loop never blocks."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from support.patience import PATIENCE

from wattfare_mw.errors import WattfareError, WattfareRateLimitError
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import accounts
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.ledger.sqlite import statements
from wattfare_mw.service.ledger.sqlite import writer as sqlite_writer
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.sqlite.writer import Writer
from wattfare_mw.service.records import Account, Bounds, InferenceCall, Outcome, Terms

KEEP = "INSERT INTO settings (name, value) VALUES (?, x'00')"
DONE = Outcome(ended="completed", generated=True, cost=4)


@pytest.fixture
def file(tmp_path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture
def writer(file: str) -> Iterator[Writer]:
    writer = Writer(make_url(f"sqlite:///{file}"))
    yield writer
    writer.close()


def keep(name: str):
    return lambda cursor: cursor.execute(KEEP, [name]).rowcount


def kept(file: str) -> set[str]:
    connection = sqlite3.connect(file)
    names = {name for (name,) in connection.execute("SELECT name FROM settings")}
    connection.close()
    return names


def refuse(_) -> None:
    raise WattfareRateLimitError("refused")


async def outcomes(*futures) -> list[object]:
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*futures, return_exceptions=True)
    return [answer if isinstance(answer, int) else type(answer) for answer in answers]


async def test_refused_job_undoes_nothing_of_the_others(writer: Writer, file: str) -> None:
    began: list[str] = []

    def once(name: str):
        def job(cursor) -> int:
            began.append(name)
            return keep(name)(cursor)

        return job

    futures = [writer.run(job) for job in (once("a"), refuse, once("b"))]
    assert await outcomes(*futures) == [1, WattfareRateLimitError, 1]
    assert kept(file) == {"a", "b"}
    assert began == ["a", "b"]  # and no other job runs twice


async def test_refusal_and_driver_error_in_one_commit(writer: Writer, file: str) -> None:
    def twice(cursor) -> None:
        keep("c")(cursor)
        keep("c")(cursor)

    futures = [writer.run(job) for job in (keep("a"), refuse, twice, keep("b"))]
    assert await outcomes(*futures) == [1, WattfareRateLimitError, sqlite3.IntegrityError, 1]
    assert kept(file) == {"a", "b"}


async def test_job_that_fails_midway_is_rolled_back_alone(writer: Writer, file) -> None:
    def half(cursor) -> None:
        keep("half")(cursor)
        raise ValueError

    def half_in_core(_) -> None:
        accounts.setting(writer.sql, "half in core", b"1")
        raise ValueError

    futures = [
        writer.run(keep("a")),
        writer.run(half),
        writer.run(half_in_core, in_thread=True),
        writer.run(keep("b")),
    ]
    assert await outcomes(*futures) == [1, ValueError, ValueError, 1]
    assert kept(file) == {"a", "b"}


async def test_failed_commit_is_retried_job_by_job(writer: Writer, file: str) -> None:
    """If only the commit detects the failure of one job, all others are retried."""

    def no_such_app(cursor) -> None:
        cursor.execute("PRAGMA defer_foreign_keys = ON")
        cursor.execute("INSERT INTO connections VALUES ('nobody', 'u', NULL, 1, 0, 0, '', NULL)")

    def in_core(_) -> int:
        return len(accounts.setting(writer.sql, "core", b"1"))

    futures = [
        writer.run(keep("a")),
        writer.run(in_core, in_thread=True),
        writer.run(no_such_app),
        writer.run(keep("b")),
    ]
    assert await outcomes(*futures) == [1, 1, sqlite3.IntegrityError, 1]
    assert kept(file) == {"a", "b", "core"}


async def test_transaction_that_sqlite_rolled_back(writer: Writer, file: str) -> None:
    """A full disk rolls back earlier jobs of the same commit, but raises in one only."""

    def full_disk(cursor) -> None:
        cursor.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk full")

    futures = [writer.run(job) for job in (keep("before"), full_disk, keep("after"))]
    assert await outcomes(*futures) == [1, sqlite3.OperationalError, 1]
    assert kept(file) == {"before", "after"}


async def test_core_and_driver_statements_share_a_transaction(writer: Writer, file: str) -> None:
    def core_then_driver(cursor) -> int:
        accounts.setting(writer.sql, "core", b"1")
        return cursor.execute("SELECT count(*) FROM settings").fetchone()[0]

    def fails_in_core(cursor) -> None:
        keep("driver")(cursor)
        app, _ = new_app("app", "test")
        for _ in range(2):
            accounts.add_app(writer.sql, app, utc_now())

    assert await writer.run(core_then_driver, in_thread=True) == 1
    with pytest.raises(DBAPIError):
        await writer.run(fails_in_core, in_thread=True)
    assert kept(file) == {"core"}
    assert await writer.run(keep("later")) == 1


async def test_loop_is_woken_once_for_a_commit(writer: Writer, monkeypatch) -> None:
    loop = asyncio.get_running_loop()
    woken = 0
    wake = loop.call_soon_threadsafe

    def count(*arguments):
        nonlocal woken
        woken += 1
        return wake(*arguments)

    await writer.run(refuse_nothing)
    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    futures = [writer.run(keep(str(number))) for number in range(20)]
    assert await outcomes(*futures) == [1] * 20
    assert woken == 1


def refuse_nothing(_) -> None:
    pass


async def test_cancelled_job_is_still_executed(writer: Writer, file: str) -> None:
    async def wait(job) -> None:
        await writer.run(job)

    tasks = [asyncio.create_task(wait(job)) for job in (keep("a"), refuse, keep("b"))]
    await asyncio.sleep(0)  # they are waiting now
    for task in tasks[:2]:
        task.cancel()
    assert await outcomes(*tasks) == [
        asyncio.CancelledError,
        asyncio.CancelledError,
        type(None),
    ]
    assert kept(file) == {"a", "b"}


@contextmanager
def blocked_thread(writer: Writer) -> Iterator[None]:
    """Holds the connection in the thread."""
    begun, gate = threading.Event(), threading.Event()

    def hold_up(_) -> None:
        begun.set()
        gate.wait(PATIENCE)

    writer.run(hold_up, in_thread=True)
    asyncio.get_running_loop().call_soon(begun.wait, PATIENCE)
    try:
        yield
    finally:
        gate.set()


def test_job_of_a_closed_loop_is_still_executed(file: str) -> None:
    """The result has no receiver any more."""
    writer = Writer(make_url(f"sqlite:///{file}"))

    async def leave(stack: ExitStack) -> None:
        stack.enter_context(blocked_thread(writer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it is running
        for job in (keep("a"), refuse, keep("b")):
            writer.run(job)

    with ExitStack() as stack:
        asyncio.run(leave(stack))
    writer.close()
    assert kept(file) == {"a", "b"}


async def test_jobs_that_arrive_during_a_commit_share_the_next(writer: Writer, file: str) -> None:
    began: list[str] = []
    raw = writer.sql.connection.driver_connection
    assert raw is not None
    with blocked_thread(writer):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        futures = [writer.run(keep(str(number))) for number in range(20)]
        raw.set_trace_callback(began.append)
    assert await outcomes(*futures) == [1] * 20
    assert began.count("COMMIT") == 2  # the running commit, and theirs
    assert len(kept(file)) == 20


async def test_statements_run_on_the_loop_and_commits_in_the_thread(writer: Writer) -> None:
    where: dict[str, int] = {}
    raw = writer.sql.connection.driver_connection
    assert raw is not None
    raw.set_trace_callback(
        lambda statement: where.update({statement.split()[0]: threading.get_ident()})
    )
    await writer.run(keep("a"))
    assert where.pop("COMMIT") != threading.get_ident()
    assert where == {"BEGIN": threading.get_ident(), "INSERT": threading.get_ident()}


async def test_loop_is_not_blocked_by_a_locked_file(writer: Writer, file: str) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    futures = [writer.run(job) for job in (keep("a"), refuse)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert time.monotonic() - began < sqlite_writer.BUSY_SECONDS  # the thread waits, not the loop
    assert not any(future.done() for future in futures)
    other.execute("COMMIT")  # which a blocked loop would never reach
    other.close()
    assert await outcomes(*futures) == [1, WattfareRateLimitError]
    assert kept(file) == {"a"}


async def test_close_executes_all_queued_jobs(file: str) -> None:
    writer = Writer(make_url(f"sqlite:///{file}"))
    futures = [writer.run(keep(str(number))) for number in range(200)]
    writer.close()
    assert await outcomes(*futures) == [1] * 200
    with pytest.raises(RuntimeError, match="closed"):
        writer.run(refuse)


async def test_locked_database_is_503(file: str, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_writer, "BUSY_SECONDS", 0.01)
    store = SQLiteStore(f"sqlite:///{file}")
    app, _ = new_app("app", "test")
    await store.add_app(app)
    await store.renew()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    jobs = [
        store.account(app.id, "u1"),
        store.settle("1", Account(app.id, "u1"), DONE),
        store.connect(app.id, "u1", 5),
    ]
    for answer in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(answer, WattfareError)
        assert answer.http_status == 503
    other.execute("ROLLBACK")
    await store.connect(app.id, "u1", 5)
    # The driver's message is logged: it names no user.
    other.execute("ALTER TABLE totals RENAME TO gone")
    other.close()
    order = InferenceCall(
        id="1",
        app_id=app.id,
        user_id="u-secret",
        model="m",
        bounds=Bounds(1, 1),
        request_id="r",
    )
    with pytest.raises(WattfareError) as failure:
        await store.reserve(order, Terms())
    assert failure.value.http_status == 503
    assert "totals" in repr(failure.value.__cause__)
    assert "secret" not in repr(failure.value.__cause__)
    await store.close()


def test_no_statement_reads_a_whole_table(writer: Writer, file: str) -> None:
    """The cost of a call must not grow with the ledger."""
    texts = {
        name: text
        for name, text in vars(statements).items()
        if isinstance(text, str) and text.startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))
    }
    assert len(texts) > 15
    connection = sqlite3.connect(file)
    for name, text in texts.items():
        parameters = [1] * text.count("?")
        plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters).fetchall()
        assert not [step for *_, step in plan if "SCAN" in step], name
    connection.close()
