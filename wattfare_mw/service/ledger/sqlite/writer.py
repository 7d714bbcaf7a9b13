"""The one hand that writes an SQLite database: every transaction is its, one after the other.

SQLite has one writer at a time anyway. What a decision does, a few reads and writes in memory,
takes less than to hand it to a thread and back, so that the event loop does it by itself. What can
take its time is done in a thread, meanwhile the loop goes on: the commit, which waits for the
disk; the beginning, where another process holds the file; and whatever is not of every call.

What comes in while a commit is under way shares the next one, so that the disk is asked once for
many.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ..migrate import migrate

T = TypeVar("T")

#: The most decisions that share a commit.
MAX_BATCH = 64
#: How long to wait for another process (``wattfare apps create``) to be done, in seconds.
BUSY_SECONDS = 10


class _Job(NamedTuple):
    work: Callable[[sqlite3.Cursor], Any]
    future: asyncio.Future[Any]
    in_thread: bool


class _Result(NamedTuple):
    job: _Job
    result: Any
    error: Exception | None = None


class _Step(NamedTuple):
    """What the thread is to do: end the transaction in which a batch has been answered, or has
    failed; or, where it has not been begun, all of it."""

    batch: list[_Job]
    results: list[_Result] | Exception | None = None


class Writer:
    """Runs functions over a connection, each as one transaction of its own. To be used from one
    event loop at a time.

    They are given a cursor of the driver's. What goes through SQLAlchemy takes :attr:`sql`, which
    is the same connection and the same transaction.

    Raises:
        WattfareError: the database is of another version.
        sqlalchemy.exc.DBAPIError: it cannot be opened.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _engine(url)
        self.sql = self._engine.connect()
        try:
            migrate(self.sql)
        except BaseException:
            self.sql.close()
            raise
        self._raw = cast("sqlite3.Connection", self.sql.connection.driver_connection)
        self._raw.execute("PRAGMA busy_timeout = 0")  # it is the thread that waits
        self._cursor = self._raw.cursor()
        self._waiting: list[_Job] = []
        # Has the thread got the connection, or is the loop about to take it?
        self._busy = False
        self._closed = False
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wattfare-ledger", daemon=True)
        self._thread.start()

    def run(
        self,
        job: Callable[[sqlite3.Cursor], T],
        *,
        in_thread: bool = False,
        first: bool = False,
    ) -> asyncio.Future[T]:
        """Hand in a job, from the event loop. From then on it is carried out, even if the task that
        waits for it is cancelled.

        Args:
            in_thread: the job takes long, or it uses :attr:`sql`.
            first: the job goes before all that wait.
        """
        if self._closed:
            raise RuntimeError("the ledger is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.insert(0 if first else len(self._waiting), _Job(job, future, in_thread))
        if not self._busy:
            self._busy = True
            # Soon, and not at once: the jobs handed in until then share the commit.
            loop.call_soon(self._next)
        return future

    def close(self) -> None:
        """Carry out what has been handed in, and end."""
        if not self._closed:
            self._closed = True
            if self._waiting:
                self._steps.put(_Step(self._waiting))
                self._waiting = []
            self._steps.put(None)
        self._thread.join()
        self.sql.close()
        self._engine.dispose()

    # -- on the event loop

    def _next(self) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        if not batch:
            self._busy = False
        elif any(job.in_thread for job in batch) or not self._begins_at_once():
            self._steps.put(_Step(batch))
        else:
            self._steps.put(_Step(batch, self._run_batch(batch)))

    def _begins_at_once(self) -> bool:
        try:
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:  # another process holds it, mostly
            return False
        return True

    def _deliver(self, results: list[_Result]) -> None:
        for (_, future, _), result, error in results:
            if future.done():  # who waited was cancelled
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._next()

    # -- in the thread

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            batch, results = step
            done = self._carry_out(batch) if results is None else self._end(batch, results)
            try:
                # Once for all of them: waking it up costs more than the answer.
                batch[0].future.get_loop().call_soon_threadsafe(self._deliver, done)
            except RuntimeError:  # it is closed: nobody is left who waits
                self._busy = False

    def _carry_out(self, batch: list[_Job]) -> list[_Result]:
        try:
            self._raw.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # another process holds it: tell all at once, not in turn
            return [_Result(job, None, error) for job in batch]
        finally:
            self._raw.execute("PRAGMA busy_timeout = 0")
        return self._end(batch, self._run_batch(batch))

    def _end(self, batch: list[_Job], results: list[_Result] | Exception) -> list[_Result]:
        if not isinstance(results, Exception):
            try:
                # Said as a statement: it fails where SQLite has rolled back by itself.
                self._raw.execute("COMMIT")
            except sqlite3.Error as error:
                results = error
            else:
                return results
        with suppress(sqlite3.Error):  # it may be rolled back already
            self._raw.execute("ROLLBACK")
        if len(batch) == 1:
            return [_Result(batch[0], None, results)]
        # One of them, or the commit: let each stand for itself.
        return [answer for single in batch for answer in self._carry_out([single])]

    # -- on either side

    def _run_batch(self, batch: list[_Job]) -> list[_Result] | Exception:
        try:
            return [self._run_job(job) for job in batch]
        except Exception as error:
            return error

    def _run_job(self, job: _Job) -> _Result:
        changes = self._raw.total_changes
        try:
            return _Result(job, job.work(self._cursor))
        except (DBAPIError, sqlite3.Error):
            # SQLite may have rolled everything back by itself (a full disk does that): nothing
            # that came before counts.
            raise
        except Exception as error:
            # A refusal comes before anything is written, and undoes nothing of the others. What
            # fails half-way must not be committed with them.
            if self._raw.total_changes != changes:
                raise
            return _Result(job, None, error)


def _create_private(path: str | None) -> None:
    # The key that signs session tokens is in it. SQLite gives its other files the same mode.
    if path and path != ":memory:" and not path.startswith("file:"):
        with suppress(OSError):  # which SQLite will tell
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _engine(url: URL) -> Any:
    _create_private(url.database)
    # Parameters stay out of error messages: they hold users' ids.
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=NullPool,
    )

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
