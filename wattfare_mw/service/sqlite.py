"""One thread that owns an SQLite database: every transaction is its, one after the other.

SQLite has one writer at a time anyway; a thread that is always the same one neither waits for a
lock nor fails for one. What is waiting when it looks goes into one commit, so that the disk is
asked once for many.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from .migrate import migrate

T = TypeVar("T")

#: The most decisions that share a commit.
MAX_BATCH = 64
#: How long to wait for another process (``wattfare apps create``) to be done, in seconds.
BUSY_SECONDS = 10


class _Job(NamedTuple):
    work: Callable[[sqlite3.Cursor], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class _Answer(NamedTuple):
    job: _Job
    result: Any
    error: Exception | None = None


class Writer:
    """Runs functions over a connection, each as one transaction of its own.

    They are given a cursor of the driver's. What goes through SQLAlchemy takes :attr:`sql`, which
    is the same connection and the same transaction.

    Raises:
        WattfareError: the database is of another version.
        sqlalchemy.exc.DBAPIError: it cannot be opened.
    """

    sql: Connection
    _raw: sqlite3.Connection
    _cursor: sqlite3.Cursor

    def __init__(self, url: URL) -> None:
        self._url = url
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(ready,), name="wattfare-ledger", daemon=True
        )
        self._thread.start()
        ready.result()

    def run(self, job: Callable[[sqlite3.Cursor], T]) -> asyncio.Future[T]:
        """Hand a job in, from an event loop. From here on it is carried out, whatever becomes of
        who waits for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the ledger is closed")
            self._jobs.put(_Job(job, loop, future))
        return future

    def close(self) -> None:
        """Carry out what has been handed in, and end."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _work(self, ready: Future[None]) -> None:
        try:
            engine = _engine(self._url)
            self.sql = engine.connect()
            self._raw = cast("sqlite3.Connection", self.sql.connection.driver_connection)
            self._cursor = self._raw.cursor()
            migrate(self.sql)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        with self.sql:
            while (batch := self._next_batch()) is not None:
                self._carry_out(batch)
        engine.dispose()

    def _next_batch(self) -> list[_Job] | None:
        job = self._jobs.get()
        batch: list[_Job] = []
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._jobs.put(None)  # end at the next look
        return batch or None

    def _carry_out(self, batch: list[_Job]) -> None:
        try:
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # another process holds it: tell all at once, not in turn
            _tell([_Answer(job, None, error) for job in batch])
            return
        try:
            answers = [self._answer(job) for job in batch]
            # Said as a statement: it fails where SQLite has rolled back by itself.
            self._raw.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):  # it may be rolled back already
                self._raw.execute("ROLLBACK")
            if len(batch) > 1:  # one of them, or the commit: let each stand for itself
                for single in batch:
                    self._carry_out([single])
                return
            answers = [_Answer(batch[0], None, error)]
        _tell(answers)

    def _answer(self, job: _Job) -> _Answer:
        changes = self._raw.total_changes
        try:
            return _Answer(job, job.work(self._cursor))
        except (DBAPIError, sqlite3.Error):
            # SQLite may have rolled everything back by itself (a full disk does that): nothing
            # that came before counts.
            raise
        except Exception as error:
            # A refusal comes before anything is written, and undoes nothing of the others. What
            # fails half-way must not be committed with them.
            if self._raw.total_changes != changes:
                raise
            return _Answer(job, None, error)


def _tell(answers: list[_Answer]) -> None:
    # Once for each loop: waking it up costs more than the answer.
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer.job.loop, []).append(answer)
    for loop, its in by_loop.items():
        with suppress(RuntimeError):  # it is closed: nobody is left who waits
            loop.call_soon_threadsafe(_complete, its)


def _complete(answers: list[_Answer]) -> None:
    for (_, _, future), result, error in answers:
        if future.done():  # who waited was cancelled
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _create_private(path: str | None) -> None:
    # The key that signs session tokens is in it. SQLite gives its other files the same mode.
    if path and path != ":memory:" and not path.startswith("file:"):
        with suppress(OSError):  # which SQLite will tell
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _engine(url: URL) -> Any:
    _create_private(url.database)
    # Parameters stay out of error messages: they hold users' ids.
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        # The driver's own idea of when a transaction begins is none: BEGIN is said below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # In pages, four times the default: a ledger's indexes are written all over, and what is
        # written again before a checkpoint is copied once.
        cursor.execute("PRAGMA wal_autocheckpoint = 4000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        raw = cast("sqlite3.Connection", connection.connection.driver_connection)
        # Else it joins the one of a commit, whose end it is not told: to SQLAlchemy, all of them
        # are one.
        if not raw.in_transaction:
            raw.execute("BEGIN IMMEDIATE")

    return engine
