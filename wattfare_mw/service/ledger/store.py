"""The interface of the ledger for the rest of the service.

A store is one process's access to the database. It holds the reservations that it makes, as long as
it renews its lease. After that, any process may settle them.
"""

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
from ..errors import lease_lost, not_available
from ..records import (
    FREE,
    USERS_PAY,
    Account,
    App,
    Connection,
    GrantBudget,
    Granted,
    InferenceCall,
    LeaseRenewal,
    MeterReading,
    OrphanedStream,
    Outcome,
    Terms,
    Totals,
)
from ..tokens import MIN_KEY_BYTES
from . import accounts, corrections, leases, rules
from .clock import LeaseTime, seconds, utc_now

T = TypeVar("T")

#: How long a process holds its reservations after its last renewal, in seconds.
LEASE_SECONDS = 5.0
#: How long an app's row is cached, in seconds. A running service uses changes by a command, such as
#: a revoked key, after at most this time.
APP_SECONDS = 1.0
#: The maximum number of apps in the cache.
MAX_APPS = 1000


class Store(ABC):
    """The storage of apps, connections and the ledger.

    Every method raises a WattfareError with status 503 if the database is not available. A change
    is carried out even if the task that waits for it is cancelled.
    """

    def __init__(self) -> None:
        self._holder: str | None = None
        self._apps: dict[str, tuple[float, App]] = {}

    # -- apps

    async def app_by_id(self, app_id: str) -> App | None:
        """The app with this id."""
        # Each call needs its app. With the cache, the call does not wait behind a commit.
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
        """The app with this publishable key."""
        return await self.transact(lambda sql: accounts.app_by_publishable_key(sql, key))

    async def add_app(self, app: App) -> None:
        """Add a new app."""
        await self.transact(lambda sql: accounts.add_app(sql, app, self._now(sql)))

    async def signing_key(self) -> bytes:
        """The key that signs session tokens. The first call creates it."""
        fresh = secrets.token_bytes(MIN_KEY_BYTES)
        return await self.transact(lambda sql: accounts.setting(sql, "signing_key", fresh))

    # -- budgets

    async def connect(
        self,
        app_id: str,
        user_id: str,
        cap: int | None,
        epoch: int | None = None,
        *,
        payer_id: str = "",
        funding_id: str | None = None,
        label: str | None = None,
    ) -> bool:
        """Connect a user's budget, or change its cap, payer and funding. A new payer replaces the
        former one, whose calls in flight are cut off.

        Args:
            cap: in nano-dollars; None for no cap.
            epoch: the number of times that the connection must have been revoked; None accepts any.
            payer_id: the person whose budget it is; ``""`` for none.
            funding_id: the funding that pays; None for the operator's key.
            label: the account's label, which the payer sees; None does not change it.

        Returns: False if the connection has been revoked again. Then nothing has changed.

        Raises:
            WattfareFundingError: the payer has no such funding, or it is not valid.
        """
        return await self.transact(
            lambda sql: accounts.connect(
                sql,
                app_id,
                user_id,
                cap,
                epoch,
                self._now(sql),
                payer_id=payer_id,
                funding_id=funding_id,
                label=label,
            )
        )

    async def change_cap(
        self,
        app_id: str,
        user_id: str,
        cap: int | None,
        *,
        epoch: int | None = None,
        payer_id: str | None = None,
        only_lower: bool = False,
    ) -> bool:
        """Change the cap of a connection, and keep its payer and funding.

        Args:
            cap: in nano-dollars; None for no cap.
            epoch: the number of times that the connection must have been revoked; None accepts any.
            payer_id: the payer of the connection; None accepts any.
            only_lower: True to ignore a higher cap.

        Returns: False if there is no such connection.
        """
        return await self.transact(
            lambda sql: accounts.change_cap(
                sql,
                app_id,
                user_id,
                cap,
                self._now(sql),
                epoch=epoch,
                payer_id=payer_id,
                only_lower=only_lower,
            )
        )

    async def epoch(self, app_id: str, user_id: str) -> int:
        """How many times this user's connection has been revoked."""
        connection, _ = await self.account(app_id, user_id)
        return 0 if connection is None else connection.revocations

    @abstractmethod
    async def revoke(self, app_id: str, user_id: str, *, payer_id: str | None = None) -> bool:
        """Revoke a connection of this payer, or of any payer if None. Returns False if there is no
        such connection.

        This is as fast as the statements of a call, because streams continue until it is done."""

    async def revoke_grant(
        self, app_id: str, token_hash: str, *, payer_id: str | None = None
    ) -> bool:
        """Revoke a grant of this payer, or of any payer if None. Returns False if there is no such
        grant."""
        return await self.transact(
            lambda sql: accounts.revoke_grant(sql, app_id, token_hash, payer_id=payer_id)
        )

    async def revoke_app(self, app_id: str) -> None:
        """Revoke all connections and grants of an app."""
        await self.transact(lambda sql: accounts.revoke_app(sql, app_id, self._now(sql)))

    async def remove_funding(self, payer_id: str, funding_id: str) -> bool:
        """Delete the key of a funding, and revoke what it pays for. Returns False if the payer has
        no such funding."""
        return await self.transact(
            lambda sql: accounts.remove_funding(sql, payer_id, funding_id, self._now(sql))
        )

    @abstractmethod
    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        """A user's connection, and its payer's totals for this month."""

    async def add_grant(
        self,
        app_id: str,
        token_hash: str,
        grant: GrantBudget,
        terms: Terms = USERS_PAY,
        now: int = 0,
    ) -> None:
        """Add a new grant. Raises an error if the rules refuse it."""
        await self.transact(
            lambda sql: accounts.add_grant(sql, app_id, token_hash, grant, terms, now)
        )

    async def check_account(
        self, app_id: str, user_id: str | None, grant_hash: str | None, terms: Terms
    ) -> None:
        """Raise an error if this user or grant cannot pay for any call now."""
        if user_id is not None:
            connection, totals = await self.account(app_id, user_id)
            # Only the message of a refusal needs the time, so the database is not asked for it.
            rules.reserve(connection, totals, FREE, terms, seconds(utc_now()))
        else:
            grant, now = await self.transact(
                lambda sql: (accounts.grant(sql, app_id, grant_hash), self._now(sql))
            )
            rules.reserve_grant(grant, FREE, seconds(now))

    # -- calls

    async def reserve(self, call: InferenceCall, terms: Terms) -> Granted:
        """Reserve what a call may cost. Returns the amount, and the funding that pays. Raises an
        error if the rules refuse the call."""
        if self._holder is None:
            raise lease_lost()
        return await self._reserve(call, terms, self._holder)

    async def oldest_call(self, account: Account) -> int | None:
        """How long the oldest call in flight of this account has run, in seconds; None if there is
        none."""
        reserved_at, now = await self.transact(
            lambda sql: (leases.oldest_call(sql, account), self._now(sql))
        )
        return None if reserved_at is None else max(seconds(now) - reserved_at, 0)

    @abstractmethod
    async def settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        """End a reservation of this account. Returns what was billed, or None if it has already
        ended."""

    async def correct(
        self, reservation_id: str, account: Account, outcome: Outcome, terms: Terms
    ) -> int | None:
        """Correct the bill of a call that another process has settled, because this process seemed
        dead. Returns the additional bill, in nano-dollars, or None if there is nothing to
        correct."""
        return await self.transact(
            lambda sql: corrections.correct(
                sql, reservation_id, account, outcome, terms, self._now(sql)
            )
        )

    # -- leases

    async def renew(self, readings: Sequence[MeterReading] = ()) -> LeaseRenewal:
        """Begin or extend this process's lease, which covers all its reservations, and record the
        cost of its streams so far. If the lease has expired, the next renewal begins a new
        lease."""
        fresh = self._holder is None
        holder = self._holder or secrets.token_hex(16)
        renewal = await self._renew(holder, readings, fresh=fresh)
        self._holder = holder if renewal.held else None
        return renewal

    async def sweep(self, *, keep_streams: bool = False) -> int:
        """Settle the calls whose process has died. Returns how many there were.

        Args:
            keep_streams: leave streams to :meth:`take_over` if the provider can report their cost.
        """
        await self._expire_leases()
        swept = 0
        while orphaned := await self.transact(
            lambda sql: leases.orphaned_calls(sql, keep_streams=keep_streams)
        ):
            for reservation_id, account, outcome in orphaned:
                # Other processes may do the same at this time. Only one of them settles each call.
                swept += await self.settle(reservation_id, account, outcome) is not None
        return swept

    async def take_over(self) -> list[OrphanedStream]:
        """Hold some streams whose process has died, and whose true cost the provider can report.
        This process must settle them. If it dies, another one takes them over."""
        holder = self._holder
        if holder is None:
            return []
        await self._expire_leases()
        return await self.transact(lambda sql: leases.take_over(sql, holder))

    async def _expire_leases(self) -> None:
        # Commit this before anything is settled. After that, the dead process cannot reserve or
        # record anything.
        await self.transact(
            lambda sql: leases.expire_leases(sql, self._now(sql), self._lease_now(sql))
        )

    # -- the database itself

    async def check_writable(self) -> None:
        """Write a small row. Raises a 503 if the database does not accept it, as on a full disk."""
        try:
            await self.transact(lambda sql: accounts.note_health(sql, self._now(sql)))
        except WattfareError as error:
            message = (
                "The service's database does not accept writes. It is unavailable, or its"
                " disk is full."
            )
            raise not_available(message) from error.__cause__

    async def close(self) -> None:
        """Finish running jobs, end the lease, and close the database."""
        holder, self._holder = self._holder, None
        if holder is not None:
            with suppress(WattfareError):  # the lease will expire
                await self.transact(lambda sql: leases.end_lease(sql, holder))
        await self._close()

    @abstractmethod
    async def transact(self, job: Callable[[Sql], T]) -> T:
        """Run a job as one transaction, through SQLAlchemy. For work that does not happen in every
        call."""

    async def at(self, job: Callable[[Sql, datetime], T]) -> T:
        """Run a job as :meth:`transact` does, and pass it the time of the database's clock."""
        return await self.transact(lambda sql: job(sql, self._now(sql)))

    # -- implemented for each database

    @abstractmethod
    async def _app_by_id(self, app_id: str) -> App | None: ...

    @abstractmethod
    async def _reserve(self, call: InferenceCall, terms: Terms, holder: str) -> Granted: ...

    @abstractmethod
    async def _renew(
        self, holder: str, readings: Sequence[MeterReading], *, fresh: bool
    ) -> LeaseRenewal: ...

    @abstractmethod
    def _now(self, sql: Sql) -> datetime:
        """The time by the clock that all processes of this database share."""

    @abstractmethod
    def _lease_now(self, sql: Sql) -> LeaseTime:
        """The time by the clock of the leases."""

    @abstractmethod
    async def _close(self) -> None: ...
