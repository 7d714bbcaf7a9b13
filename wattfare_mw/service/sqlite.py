"""One thread that owns an SQLite database: every transaction is its, one after the other.

SQLite has one writer at a time anyway; a thread that is always the same one neither waits for a
lock nor fails for one. What is waiting when it looks goes into one commit, so that the disk is
asked once for many.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from .migrate import migrate

T = TypeVar("T")

#: The most decisions that share a commit.
MAX_BATCH = 64
#: How long to wait for another process (``wattfare apps create``) to be done, in seconds.
BUSY_SECONDS = 10

_Job = tuple[Callable[[Connection], Any], "Future[Any]"]


class Writer:
    """Runs functions over a connection, each as one transaction of its own.

    Raises:
        WattfareError: the database is of another version.
        sqlalchemy.exc.DBAPIError: it cannot be opened.
    """

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

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Hand a job in. From here on it is carried out, whatever becomes of who waits for it."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # cannot be cancelled any more
        with self._lock:
            if self._closed:
                raise RuntimeError("the ledger is closed")
            self._jobs.put((job, future))
        return future

    async def run(self, job: Callable[[Connection], T]) -> T:
        """:meth:`submit`, for an event loop."""
        return await asyncio.wrap_future(self.submit(job))

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
            connection = engine.connect()
            migrate(connection)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        with connection:
            while (batch := self._next_batch()) is not None:
                _carry_out(connection, batch)
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


def _carry_out(connection: Connection, batch: list[_Job]) -> None:
    results: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        transaction = connection.begin()
    except Exception as error:  # another process holds the database: tell all at once, not in turn
        for _, future in batch:
            future.set_exception(error)
        return
    try:
        with transaction:
            for job, future in batch:
                try:
                    # A savepoint each: the refusal of one undoes nothing of the others.
                    with connection.begin_nested():
                        results.append((future, job(connection), None))
                except DBAPIError:
                    # SQLite may have rolled everything back by itself (a full disk does that):
                    # nothing that came before counts.
                    raise
                except Exception as error:
                    results.append((future, None, error))
    except Exception as error:
        with suppress(Exception):
            connection.rollback()
        if len(batch) > 1:  # one of them, or the commit: let each stand for itself
            for single in batch:
                _carry_out(connection, [single])
            return
        results = [(batch[0][1], None, error)]
    for future, result, error in results:
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
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
