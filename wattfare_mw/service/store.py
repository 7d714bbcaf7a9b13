"""The ledger as the service sees it: few decisions, each of them atomic, each awaited.

:class:`Store` is what a database has to offer; :func:`open_store` gives the one for a URL.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from ..errors import WattfareError
from . import queries
from .keys import App
from .queries import Order, Outcome
from .refusals import invalid
from .rules import USERS_PAY, Connection, Grant, Terms, Totals
from .tokens import MIN_KEY_BYTES

T = TypeVar("T")

#: What a client is told to wait where the database is not there, in seconds.
DATABASE_RETRY_SECONDS = 5


class Store(Protocol):
    """Where apps, connections and the ledger are kept.

    Every method raises a WattfareError with status 503 where the database is not there.
    """

    async def app_by_id(self, app_id: str) -> App | None: ...
    async def app_by_publishable_key(self, key: str) -> App | None: ...
    async def add_app(self, app: App) -> None: ...
    async def signing_key(self) -> bytes: ...
    async def connect(self, app_id: str, user_id: str, cap: int | None) -> None: ...
    async def revoke(self, app_id: str, user_id: str) -> None: ...
    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]: ...
    async def add_grant(
        self,
        app_id: str,
        token_hash: str,
        grant: Grant,
        terms: Terms = USERS_PAY,
        now: int = 0,
    ) -> None: ...
    async def reserve(self, order: Order, terms: Terms) -> int: ...
    async def settle(self, reservation_id: str, outcome: Outcome) -> int | None: ...
    async def settle_abandoned(self) -> int: ...
    async def verify(self) -> list[str]: ...
    async def close(self) -> None: ...


class SQLiteStore:
    """:class:`Store`, over one thread that owns an SQLite file."""

    def __init__(self, url: str, *, clock: Callable[[], datetime] = queries.utc_now) -> None:
        # SQLAlchemy's SQLite is not needed before there is a store.
        from .sqlite import Writer

        self._clock = clock
        try:
            self._writer = Writer(make_url(url).set(drivername="sqlite"))
        except DBAPIError as error:
            raise invalid(f"The database cannot be opened: {error.orig}.") from None

    async def app_by_id(self, app_id: str) -> App | None:
        """The app with this id."""
        return await self._run(lambda sql: queries.app_by_id(sql, app_id))

    async def app_by_publishable_key(self, key: str) -> App | None:
        """The app that this publishable key names."""
        return await self._run(lambda sql: queries.app_by_publishable_key(sql, key))

    async def add_app(self, app: App) -> None:
        """Keep a new app."""
        await self._run(lambda sql: queries.add_app(sql, app, self._clock()))

    async def signing_key(self) -> bytes:
        """The key that signs session tokens, made at the first call."""
        fresh = secrets.token_bytes(MIN_KEY_BYTES)
        return await self._run(lambda sql: queries.setting(sql, "signing_key", fresh))

    async def connect(self, app_id: str, user_id: str, cap: int | None) -> None:
        """Connect a user's budget, or change its cap."""
        await self._run(lambda sql: queries.connect(sql, app_id, user_id, cap, self._clock()))

    async def revoke(self, app_id: str, user_id: str) -> None:
        """Take a connection back."""
        await self._run(lambda sql: queries.revoke(sql, app_id, user_id, self._clock()))

    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        """A user's connection, and this month's totals."""
        return await self._run(lambda sql: queries.account(sql, app_id, user_id, self._clock()))

    async def add_grant(
        self,
        app_id: str,
        token_hash: str,
        grant: Grant,
        terms: Terms = USERS_PAY,
        now: int = 0,
    ) -> None:
        """Keep a new grant; raises the refusal."""
        await self._run(lambda sql: queries.add_grant(sql, app_id, token_hash, grant, terms, now))

    async def reserve(self, order: Order, terms: Terms) -> int:
        """Reserve what a call may cost, and say how much that is; raises the refusal."""
        return await self._run(lambda sql: queries.reserve(sql, order, terms, self._clock()))

    async def settle(self, reservation_id: str, outcome: Outcome) -> int | None:
        """End a reservation; what was billed, or None where it has ended before."""
        return await self._run(
            lambda sql: queries.settle(sql, reservation_id, outcome, self._clock())
        )

    async def settle_abandoned(self) -> int:
        """End what a process that died left behind; how many."""
        return await self._run(lambda sql: queries.settle_abandoned(sql, self._clock()))

    async def verify(self) -> list[str]:
        """The totals that their rows do not prove, a line each."""
        return await self._run(queries.verify)

    async def close(self) -> None:
        """Carry out what is under way, and let go of the file."""
        self._writer.close()

    async def _run(self, job: Callable[[Sql], T]) -> T:
        try:
            return await self._writer.run(job)
        except DBAPIError as error:
            raise WattfareError(
                "The service's database is not available.",
                code="upstream",
                status=503,
                retry_after=DATABASE_RETRY_SECONDS,
            ) from error


def open_store(url: str) -> Store:
    """The store for this SQLAlchemy URL, its tables brought up to date.

    Raises:
        WattfareError: ``invalid_request``; it is no such URL, not SQLite, or cannot be opened.
    """
    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        backend = None
    if backend != "sqlite":
        raise invalid(
            "This version keeps its ledger in SQLite: sqlite:///wattfare.db, "
            "or sqlite:////an/absolute/path.db."
        )
    return SQLiteStore(url)
