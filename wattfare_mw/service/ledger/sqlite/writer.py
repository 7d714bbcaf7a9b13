"""Serializes all writes to an SQLite database through one connection.

SQLite allows only one writer at a time. The jobs of a call are a few reads and writes in memory.
They take less time than a switch to a thread and back, so they run on the event loop. Slow work
runs in a thread: the commit, which waits for the disk; the begin, if another process has locked the
file; and jobs that are not part of each call.

Jobs that arrive during a commit share the next commit, so one write to the disk serves many jobs.
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

#: The maximum number of jobs that share a commit.
MAX_BATCH = 64
#: How long to wait for another process, such as ``wattfare apps create``, in seconds.
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
    """Work for the thread: commit a batch of jobs that the event loop has run, or run the whole
    batch if its transaction has not begun."""

    batch: list[_Job]
    results: list[_Result] | Exception | None = None


class Writer:
    """Runs jobs with one connection. Each job behaves as if it had its own transaction. Use a
    writer from one event loop at a time.

    A job receives a cursor of the driver. A job that uses SQLAlchemy uses :attr:`sql` instead,
    which is the same connection and the same transaction.

    Raises:
        WattfareError: the database has another version.
        sqlalchemy.exc.DBAPIError: the database cannot be opened.
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
        self._raw.execute("PRAGMA busy_timeout = 0")  # the thread waits instead
        self._cursor = self._raw.cursor()
        self._waiting: list[_Job] = []
        # True while the thread uses the connection, or if the event loop will use it next.
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
        """Submit a job, from the event loop. The job runs even if the task that waits for it is
        cancelled.

        Args:
            in_thread: True if the job is slow, or uses :attr:`sql`.
            first: True to run the job before all waiting jobs.
        """
        if self._closed:
            raise RuntimeError("the ledger is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.insert(0 if first else len(self._waiting), _Job(job, future, in_thread))
        if not self._busy:
            self._busy = True
            # Run soon instead of now, so that jobs submitted in the meantime share the commit.
            loop.call_soon(self._next)
        return future

    def close(self) -> None:
        """Run the submitted jobs, then end."""
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
        except sqlite3.Error:  # usually, another process holds it
            return False
        return True

    def _deliver(self, results: list[_Result]) -> None:
        for (_, future, _), result, error in results:
            if future.done():  # the waiting task was cancelled
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
                # Wake the event loop once for the whole batch, because waking it is slow.
                batch[0].future.get_loop().call_soon_threadsafe(self._deliver, done)
            except RuntimeError:  # the event loop is closed, so the jobs have no waiting tasks
                self._busy = False

    def _carry_out(self, batch: list[_Job]) -> list[_Result]:
        try:
            self._raw.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # the file is locked: fail the whole batch
            return [_Result(job, None, error) for job in batch]
        finally:
            self._raw.execute("PRAGMA busy_timeout = 0")
        return self._end(batch, self._run_batch(batch))

    def _end(self, batch: list[_Job], results: list[_Result] | Exception) -> list[_Result]:
        if not isinstance(results, Exception):
            try:
                # A COMMIT statement fails if SQLite has rolled back by itself, but the driver's
                # `commit()` does not.
                self._raw.execute("COMMIT")
            except sqlite3.Error as error:
                results = error
            else:
                return results
        with suppress(sqlite3.Error):  # it may already be rolled back
            self._raw.execute("ROLLBACK")
        if len(batch) == 1:
            return [_Result(batch[0], None, results)]
        # A job or the commit has failed, so run each job in its own transaction.
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
            # SQLite may have rolled back by itself, as on a full disk. Then the previous jobs are
            # undone, too.
            raise
        except Exception as error:
            # A refused job has not written anything, so the other jobs can be committed. A job that
            # has failed after a write must not be committed.
            if self._raw.total_changes != changes:
                raise
            return _Result(job, None, error)


def _create_private(path: str | None) -> None:
    # The file has the key that signs session tokens. SQLite gives its other files the same mode.
    if path and path != ":memory:" and not path.startswith("file:"):
        with suppress(OSError):  # SQLite will report it
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _engine(url: URL) -> Any:
    _create_private(url.database)
    # Parameters have users' ids, so they stay out of error messages.
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=NullPool,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        # The driver must not begin transactions by itself. Our own BEGIN is below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # The number of pages is four times the default. The ledger writes many different pages of
        # its indexes. If a page is written twice before a checkpoint, it is copied only once.
        cursor.execute("PRAGMA wal_autocheckpoint = 4000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        raw = cast("sqlite3.Connection", connection.connection.driver_connection)
        # Otherwise, SQLAlchemy would continue the previous transaction, because it has not seen its
        # end.
        if not raw.in_transaction:
            raw.execute("BEGIN IMMEDIATE")

    return engine
