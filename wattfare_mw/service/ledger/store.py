"""The ledger as the service sees it: few decisions, each of them atomic, each awaited.

:class:`Store` is what a database has to offer; :func:`open_store` gives the one for a URL. A store
is one process's hold on the database: its reservations are this process's, and are anybody's to
settle once it no longer renews.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from ...errors import invalid_request
from ..errors import not_available
from ..keys import App
from ..records import Metered, Order, Outcome, Renewal
from . import accounts as queries
from .base import SQLStore
from .rules import USERS_PAY, Connection, Grant, Terms, Totals
from .sqlite import transactions as hot

T = TypeVar("T")

#: How long a process that does not renew goes on holding its calls, in seconds.
LEASE_SECONDS = 5.0


class Store(Protocol):
    """Where apps, connections and the ledger are kept.

    Every method raises a WattfareError with status 503 where the database is not there. What is
    asked for is carried out even where whoever waits for it is cancelled.
    """

    async def app_by_id(self, app_id: str) -> App | None:
        """The app with this id."""
        ...

    async def app_by_publishable_key(self, key: str) -> App | None:
        """The app that this publishable key names."""
        ...

    async def add_app(self, app: App) -> None:
        """Keep a new app."""
        ...

    async def signing_key(self) -> bytes:
        """The key that signs session tokens, made at the first call."""
        ...

    async def connect(self, app_id: str, user_id: str, cap: int | None) -> None:
        """Connect a user's budget, or change its cap."""
        ...

    async def revoke(self, app_id: str, user_id: str) -> None:
        """Take a connection back."""
        ...

    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        """A user's connection, and this month's totals."""
        ...

    async def add_grant(
        self,
        app_id: str,
        token_hash: str,
        grant: Grant,
        terms: Terms = USERS_PAY,
        now: int = 0,
    ) -> None:
        """Keep a new grant; raises the refusal."""
        ...

    async def renew(self, metered: Sequence[Metered] = ()) -> Renewal:
        """Begin this process's lease, or prolong it for all of its calls at once, and note what
        its streams have cost so far. One that has run out is begun anew at the next call."""
        ...

    async def reserve(self, order: Order, terms: Terms) -> int:
        """Reserve what a call may cost, and say how much that is; raises the refusal."""
        ...

    async def settle(self, reservation_id: str, outcome: Outcome) -> int | None:
        """End a reservation; what was billed, or None where it has ended before."""
        ...

    async def sweep(self) -> int:
        """End what processes that died have left behind; how many."""
        ...

    async def verify(self) -> list[str]:
        """The totals that their rows do not prove, a line each."""
        ...

    async def close(self) -> None:
        """Carry out what is under way, end the lease, and let go of the database."""
        ...


class SQLiteStore(SQLStore):
    """:class:`Store`, over an SQLite file. Others may write it too: each transaction has it to
    itself. The database's clock is the machine's."""

    def __init__(self, url: str, *, clock: Callable[[], datetime] = queries.utc_now) -> None:
        # Alembic comes with it, and is not needed before there is a store.
        from .sqlite.writer import Writer

        super().__init__()
        self._clock = clock
        try:
            self._writer = Writer(make_url(url).set(drivername="sqlite"))
        except DBAPIError as error:
            raise invalid_request(f"The database cannot be opened: {error.orig}.") from None

    async def side(self, job: Callable[[Sql], T], *, isolation: str | None = None) -> T:
        return await self._run(lambda _: job(self._writer.sql), aside=True)

    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        return await self._run(lambda cursor: hot.account(cursor, app_id, user_id, self._clock()))

    async def settle(self, reservation_id: str, outcome: Outcome) -> int | None:
        return await self._run(
            lambda cursor: hot.settle(cursor, reservation_id, outcome, self._clock())
        )

    async def _app_by_id(self, app_id: str) -> App | None:
        return await self._run(lambda cursor: hot.app_by_id(cursor, app_id))

    async def _reserve(self, order: Order, terms: Terms, holder: str) -> int:
        return await self._run(
            lambda cursor: hot.reserve(cursor, order, terms, holder, self._clock())
        )

    async def _renew(self, holder: str, metered: Sequence[Metered], *, fresh: bool) -> Renewal:
        if fresh:
            return await self._run(
                lambda cursor: hot.begin(cursor, holder, LEASE_SECONDS, self._clock())
            )
        return await self._run(
            lambda cursor: hot.renew(cursor, holder, metered, LEASE_SECONDS, self._clock())
        )

    def _now(self, sql: Sql) -> datetime:
        return self._clock()

    async def _close(self) -> None:
        self._writer.close()

    async def _run(self, job: Callable[[sqlite3.Cursor], T], *, aside: bool = False) -> T:
        try:
            return await self._writer.run(job, aside=aside)
        except (DBAPIError, sqlite3.Error) as error:
            raise not_available() from error


async def open_store(url: str) -> Store:
    """The store for this database URL. An SQLite file is brought up to date by itself.

    Raises:
        WattfareError: ``invalid_request``; it is no such URL, cannot be opened, or is of another
            version; 503: it cannot be reached.
    """
    backend = backend_of(url)
    if backend == "sqlite":
        return SQLiteStore(url)
    from .postgresql.store import open_postgresql

    return await open_postgresql(url)


def backend_of(url: str) -> str:
    """``sqlite`` or ``postgresql``.

    Raises:
        WattfareError: ``invalid_request``; it is neither.
    """
    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        backend = None
    if backend not in ("sqlite", "postgresql"):
        raise invalid_request(
            "The ledger is kept in SQLite (sqlite:///wattfare.db, "
            "sqlite:////an/absolute/path.db) or in PostgreSQL (postgresql://user@host/database)."
        )
    return backend
