"""The store over an SQLite file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from ....errors import invalid_request
from ...errors import not_available
from ...records import (
    Account,
    App,
    Connection,
    Granted,
    InferenceCall,
    LeaseRenewal,
    MeterReading,
    Outcome,
    Terms,
    Totals,
)
from ..clock import LeaseTime, lease_now, milliseconds, utc_now
from ..store import LEASE_SECONDS, Store
from . import transactions
from .writer import Writer

T = TypeVar("T")

#: A disk with less free space than this counts as full, in bytes, because one commit may need this
#: much.
MIN_FREE_BYTES = 2**16


class SQLiteStore(Store):
    """The store over an SQLite file. Other processes of this machine may write to it, too.

    Args:
        clock: replaces the clocks of the machine in tests.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__()
        self._clock = clock or utc_now
        self._lease_clock = lease_now
        if clock is not None:
            self._lease_clock = lambda: LeaseTime("", milliseconds(clock()))
        parsed = make_url(url).set(drivername="sqlite")
        path = parsed.database or ":memory:"
        in_a_file = path != ":memory:" and not path.startswith("file:")
        if in_a_file:
            path = str(Path(path).absolute())
        self._folder = Path(path).parent if in_a_file else None
        try:
            self._writer = Writer(parsed)
        except DBAPIError as error:
            raise invalid_request(
                f"The database {path} cannot be opened: {error.orig}. Check the file and its"
                " directory, or use another file with --database sqlite:////path/to/wattfare.db"
            ) from None

    async def transact(self, job: Callable[[Sql], T]) -> T:
        return await self._run(lambda _: job(self._writer.sql), in_thread=True)

    async def check_writable(self) -> None:
        # A write does not always detect a full disk, because it may fit into the existing log file.
        if self._folder is not None and shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
            raise not_available("The disk of the service's database is full.")
        await super().check_writable()

    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        return await self._run(
            lambda cursor: transactions.account(cursor, app_id, user_id, self._clock())
        )

    async def settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        return await self._run(
            lambda cursor: transactions.settle(
                cursor, reservation_id, account, outcome, self._clock()
            )
        )

    async def revoke(self, app_id: str, user_id: str, *, payer_id: str | None = None) -> bool:
        return await self._run(
            lambda cursor: transactions.revoke(cursor, app_id, user_id, payer_id, self._clock()),
            first=True,
        )

    async def _app_by_id(self, app_id: str) -> App | None:
        return await self._run(lambda cursor: transactions.app_by_id(cursor, app_id))

    async def _reserve(self, call: InferenceCall, terms: Terms, holder: str) -> Granted:
        return await self._run(
            lambda cursor: transactions.reserve(
                cursor, call, terms, holder, self._clock(), self._lease_clock()
            )
        )

    async def _renew(
        self, holder: str, readings: Sequence[MeterReading], *, fresh: bool
    ) -> LeaseRenewal:
        def renew(cursor: sqlite3.Cursor) -> LeaseRenewal:
            now = self._lease_clock()
            if fresh:
                return transactions.begin_lease(cursor, holder, LEASE_SECONDS, now)
            return transactions.renew_lease(cursor, holder, readings, LEASE_SECONDS, now)

        # The renewal runs before all waiting jobs. A second connection would have to wait for the
        # same lock.
        return await self._run(renew, first=True)

    def _now(self, sql: Sql) -> datetime:
        return self._clock()

    def _lease_now(self, sql: Sql) -> LeaseTime:
        return self._lease_clock()

    async def _close(self) -> None:
        self._writer.close()

    async def _run(
        self, job: Callable[[sqlite3.Cursor], T], *, in_thread: bool = False, first: bool = False
    ) -> T:
        try:
            return await self._writer.run(job, in_thread=in_thread, first=first)
        except (DBAPIError, sqlite3.Error) as error:
            raise not_available() from error
