"""What a store does in the same words in every database. What differs is how a job is carried
out, and how the ledger is asked what happens for each call."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection as Sql

from ...errors import WattfareError
from ..keys import App
from ..records import Metered, Order, Outcome, Renewal
from ..tokens import MIN_KEY_BYTES
from . import accounts as queries
from . import leases as ledger
from . import verify as audit
from .rules import USERS_PAY, Connection, Grant, Terms, Totals

T = TypeVar("T")

#: How long an app that was found is taken for what it was, in seconds. Nothing here changes one;
#: where its row is changed by hand, that is heard within this time.
APP_SECONDS = 1.0
#: The most apps that are kept in mind.
MAX_APPS = 1000


class SQLStore(ABC):
    """:class:`.store.Store`, over whatever can carry out a job."""

    def __init__(self) -> None:
        self._holder: str | None = None
        self._apps: dict[str, tuple[float, App]] = {}

    async def app_by_id(self, app_id: str) -> App | None:
        # Asked for each call, which need not wait behind a commit for what never changes.
        now = time.monotonic()
        until, app = self._apps.get(app_id, (now, None))
        if now < until:
            return app
        app = await self._app_by_id(app_id)
        if app is None:
            self._apps.pop(app_id, None)
            return None
        if len(self._apps) >= MAX_APPS:
            self._apps.clear()
        self._apps[app_id] = (now + APP_SECONDS, app)
        return app

    async def app_by_publishable_key(self, key: str) -> App | None:
        return await self.side(lambda sql: queries.app_by_publishable_key(sql, key))

    async def add_app(self, app: App) -> None:
        await self.side(lambda sql: queries.add_app(sql, app, self._now(sql)))

    async def signing_key(self) -> bytes:
        fresh = secrets.token_bytes(MIN_KEY_BYTES)
        return await self.side(lambda sql: queries.setting(sql, "signing_key", fresh))

    async def connect(self, app_id: str, user_id: str, cap: int | None) -> None:
        await self.side(lambda sql: queries.connect(sql, app_id, user_id, cap, self._now(sql)))

    async def revoke(self, app_id: str, user_id: str) -> None:
        await self.side(lambda sql: queries.revoke(sql, app_id, user_id, self._now(sql)))

    async def add_grant(
        self,
        app_id: str,
        token_hash: str,
        grant: Grant,
        terms: Terms = USERS_PAY,
        now: int = 0,
    ) -> None:
        await self.side(lambda sql: queries.add_grant(sql, app_id, token_hash, grant, terms, now))

    async def renew(self, metered: Sequence[Metered] = ()) -> Renewal:
        fresh = self._holder is None
        holder = self._holder or secrets.token_hex(16)
        renewal = await self._renew(holder, metered, fresh=fresh)
        self._holder = holder if renewal.held else None
        return renewal

    async def reserve(self, order: Order, terms: Terms) -> int:
        if self._holder is None:
            raise ledger.lease_lost()
        return await self._reserve(order, terms, self._holder)

    async def sweep(self) -> int:
        # Committed before anything is settled: from here on, none of them can reserve or record.
        await self.side(lambda sql: ledger.expire_leases(sql, self._now(sql)))
        swept = 0
        while left := await self.side(ledger.left_behind):
            for reservation_id, outcome in left:
                # Another process may be sweeping, too: each is settled by one of them.
                swept += await self.settle(reservation_id, outcome) is not None
        return swept

    async def verify(self) -> list[str]:
        return await self.side(audit.verify, isolation="REPEATABLE READ")

    async def close(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            with suppress(WattfareError):  # it runs out by itself
                await self.side(lambda sql: ledger.end(sql, holder))
        await self._close()

    @abstractmethod
    async def side(self, job: Callable[[Sql], T], *, isolation: str | None = None) -> T:
        """Carry out a job as one transaction, through SQLAlchemy: what does not happen for each
        call. ``isolation``: where the database has several, and its usual one will not do."""

    @abstractmethod
    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]: ...

    @abstractmethod
    async def settle(self, reservation_id: str, outcome: Outcome) -> int | None: ...

    @abstractmethod
    async def _app_by_id(self, app_id: str) -> App | None: ...

    @abstractmethod
    async def _reserve(self, order: Order, terms: Terms, holder: str) -> int: ...

    @abstractmethod
    async def _renew(self, holder: str, metered: Sequence[Metered], *, fresh: bool) -> Renewal: ...

    @abstractmethod
    def _now(self, sql: Sql) -> datetime:
        """The clock by which this database's processes live."""

    @abstractmethod
    async def _close(self) -> None: ...
