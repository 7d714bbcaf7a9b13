"""The ledger in PostgreSQL, which many processes share.

Each step of a call is a SQL function, which takes one prepared statement, one round trip and one
transaction. The migrations create these functions (``migrations/postgresql``). Everything else uses
SQLAlchemy, as with SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Any, TypeVar

from sqlalchemy import Connection as Sql
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ....errors import WattfareError, forget_frames, invalid_request
from ....logs import one_line
from ....transport import hidden
from ...errors import lease_lost, not_available
from ...records import (
    Account,
    App,
    Connection,
    GrantBudget,
    Granted,
    InferenceCall,
    LeaseRenewal,
    MeterReading,
    OperatorTotals,
    Outcome,
    PriorCall,
    Terms,
    Totals,
)
from .. import migrate, rules
from ..clock import LeaseTime, milliseconds
from ..leases import MAX_INTEGER
from ..store import LEASE_SECONDS, Store
from . import address

try:
    asyncpg: Any = import_module("asyncpg")  # which has no types
except ModuleNotFoundError:  # opening a database raises the error
    asyncpg = None

T = TypeVar("T")

#: The maximum number of connections of one process for calls, and for everything else.
POOL_SIZE = 10
SIDE_POOL_SIZE = 2
#: How long to wait for a connection or an answer before the database counts as unavailable, in
#: seconds. These times are well below the length of a lease.
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.5

_RESERVE = (
    "SELECT * FROM wattfare_reserve("
    "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
)
_SETTLE = "SELECT wattfare_settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_RENEW = "SELECT * FROM wattfare_renew($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
_REVOKE = "SELECT wattfare_revoke($1, $2, $3, $4)"
_APP = f"""
    SELECT {", ".join(App.__struct_fields__)} FROM apps WHERE id = $1 AND deleted_at IS NULL
"""  # noqa: S608
_ACCOUNT = """
    SELECT c.app_id, c.connected, c.cap_nanos, c.revocations, c.payer_id, c.funding_id, f.state,
           t.billed_nanos, t.reserved_nanos,
           (SELECT sum(o.billed_nanos + o.reserved_nanos)::bigint FROM totals o
            WHERE o.app_id = c.app_id AND o.user_id = c.user_id AND o.payer_id <> c.payer_id
              AND o.month = now.month) AS others
    FROM (SELECT to_char(
        COALESCE(to_timestamp($3::bigint / 1000), clock_timestamp()) AT TIME ZONE 'UTC', 'YYYY-MM'
    ) AS month) AS now
    LEFT JOIN connections c ON c.app_id = $1 AND c.user_id = $2
    LEFT JOIN funding f ON f.id = c.funding_id
    LEFT JOIN totals t ON t.app_id = $1 AND t.user_id = $2 AND t.payer_id = c.payer_id
        AND t.month = now.month
"""


async def open_postgresql(url: str, *, clock: Callable[[], datetime] | None = None) -> Store:
    """Open the store of this database. Its tables must exist.

    Args:
        clock: replaces the clock of the database in tests.

    Raises:
        WattfareError: ``invalid_request`` if the database has another version, and is not changed;
            503 if it cannot be reached.
    """
    url = hidden(url)
    await run_once(url, migrate.check)
    return PostgreSQLStore(url, clock)


async def run_once(url: str, job: Callable[[Sql], T], *, isolation: str | None = None) -> T:
    """Run one job with a separate connection. The job begins its own transactions, unless
    ``isolation`` is set."""
    url = hidden(url)
    at = _address(url)
    engine = _engine(at, 1, connect_seconds=at.connect_seconds)
    try:
        async with engine.connect() as connection:
            if isolation is not None:
                await connection.execution_options(isolation_level=isolation)
            return await _run_to_end(connection.run_sync(job))
    except (SQLAlchemyError, OSError, TimeoutError, *_driver_errors()) as error:
        forget_frames(error)
        failure = not_available(f"The database cannot be reached: {_reason(error, at)}.")
    finally:
        await engine.dispose()
    raise failure


class PostgreSQLStore(Store):
    """:class:`Store`, with two pools of connections of limited size."""

    def __init__(self, url: str, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__()
        url = hidden(url)
        self._address = _address(url)
        self._clock = clock
        self._engine = _engine(self._address, SIDE_POOL_SIZE)
        self._pool: Any = None
        self._opening = asyncio.Lock()
        self._lease_connection: Any = None
        self._renewing = asyncio.Lock()

    async def _app_by_id(self, app_id: str) -> App | None:
        row = await self._ask(_APP, app_id)
        return None if row is None else App(*row)

    async def account(self, app_id: str, user_id: str) -> tuple[Connection | None, Totals]:
        row = await self._ask(_ACCOUNT, app_id, user_id, self._now_ms())
        found = None
        if row["app_id"] is not None:
            found = Connection(
                row["cap_nanos"],
                row["connected"],
                row["revocations"],
                row["payer_id"],
                row["funding_id"],
                rules.is_funding_valid(row["funding_id"], row["state"]),
                row["others"] or 0,
            )
        return found, Totals(row["billed_nanos"] or 0, row["reserved_nanos"] or 0)

    async def _renew(
        self, holder: str, readings: Sequence[MeterReading], *, fresh: bool
    ) -> LeaseRenewal:
        row = await self._ask_reserved(
            _RENEW,
            holder,
            fresh,
            round(LEASE_SECONDS * 1000),
            [each.reservation_id for each in readings],
            [each.account.app_id for each in readings],
            [each.account.user_id for each in readings],
            [each.account.grant_hash for each in readings],
            [each.generation_id for each in readings],
            [min(each.cost, MAX_INTEGER) for each in readings],
            [each.prompt_tokens for each in readings],
            [each.completion_tokens for each in readings],
            self._now_ms(),
        )
        return LeaseRenewal(held=row["o_held"], revoked=frozenset(row["o_revoked"] or ()))

    async def _reserve(self, call: InferenceCall, terms: Terms, holder: str) -> Granted:
        key = call.key
        row = await self._ask(
            _RESERVE,
            call.id,
            holder,
            call.app_id,
            call.user_id,
            call.grant_hash,
            call.model,
            call.stream,
            call.bounds.unbounded,
            call.bounds.least,
            call.bounds.most,
            call.bounds.requires_cap,
            terms.operator_pays,
            terms.ceiling,
            terms.app_ceiling,
            terms.total_ceiling,
            call.request_id,
            call.account_name,
            key.name if key else None,
            key.body if key else None,
            self._now_ms(),
        )
        if not row["o_held"]:
            raise lease_lost()
        if key is not None and row["o_prior"] is not None:
            rules.check_key(key, PriorCall(row["o_prior_body"], row["o_prior_ended"]))
        if row["o_granted"] is not None:
            return Granted(row["o_granted"], row["o_funding"])
        raise _refusal(call, terms, row)

    async def settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        row = await self._ask(
            _SETTLE,
            reservation_id,
            account.app_id,
            account.user_id,
            account.grant_hash,
            outcome.ended,
            outcome.generated,
            min(outcome.cost, MAX_INTEGER),
            outcome.claimed,
            outcome.prompt_tokens,
            outcome.completion_tokens,
            self._now_ms(),
        )
        return row[0]

    async def revoke(self, app_id: str, user_id: str, *, payer_id: str | None = None) -> bool:
        row = await self._ask(_REVOKE, app_id, user_id, payer_id, self._now_ms())
        return row[0]

    async def _close(self) -> None:
        if self._lease_connection is not None:
            self._lease_connection.terminate()
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), CONNECT_SECONDS)
            except TimeoutError:
                self._pool.terminate()
        await self._engine.dispose()

    async def transact(self, job: Callable[[Sql], T]) -> T:
        async def carry_out() -> T:
            async with self._engine.begin() as connection:
                return await connection.run_sync(job)

        return await _run_to_end(carry_out())

    async def _ask(self, query: str, *arguments: Any) -> Any:
        async def carry_out() -> Any:
            pool = self._pool or await self._open()
            async with pool.acquire(timeout=CONNECT_SECONDS) as connection:
                return await self._fetch(connection, query, arguments)

        return await _run_to_end(carry_out())

    async def _ask_reserved(self, query: str, *arguments: Any) -> Any:
        """Run a query with a reserved connection, so that it does not wait for the statements of
        calls."""

        async def carry_out() -> Any:
            async with self._renewing:
                if self._lease_connection is None or self._lease_connection.is_closed():
                    self._lease_connection = await asyncpg.connect(
                        **self._address.arguments(),
                        timeout=self._connect_seconds,
                        command_timeout=ANSWER_SECONDS,
                    )
                try:
                    return await self._fetch(self._lease_connection, query, arguments)
                except BaseException:
                    self._lease_connection.terminate()
                    raise

        return await _run_to_end(carry_out())

    async def _fetch(self, connection: Any, query: str, arguments: Sequence[Any]) -> Any:
        if not self._address.pooled:
            return await connection.fetchrow(query, *arguments)
        # In a transaction, a pooler keeps the session, so its prepared statements work.
        async with connection.transaction():
            return await connection.fetchrow(query, *arguments)

    @property
    def _connect_seconds(self) -> float:
        return min(self._address.connect_seconds or CONNECT_SECONDS, CONNECT_SECONDS)

    async def _open(self) -> Any:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    **self._address.arguments(),
                    min_size=0,
                    max_size=POOL_SIZE,
                    timeout=self._connect_seconds,
                    command_timeout=ANSWER_SECONDS,
                    reset=_do_nothing,
                )
            return self._pool

    def _now(self, sql: Sql) -> datetime:
        if self._clock is not None:
            return self._clock()
        return sql.execute(text("SELECT clock_timestamp()")).scalar_one()

    def _lease_now(self, sql: Sql) -> LeaseTime:
        return LeaseTime("", milliseconds(self._now(sql)))

    def _now_ms(self) -> int | None:
        return None if self._clock is None else int(self._clock().timestamp() * 1000)


async def _run_to_end(work: Any) -> Any:
    """Run this to its end, even if the caller is cancelled. The cancellation is raised afterwards.
    Otherwise, a reservation could be settled before it exists."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # asyncio logs an exception that is never retrieved
        raise
    except (SQLAlchemyError, OSError, TimeoutError, *_driver_errors()) as error:
        forget_frames(error)  # they hold the password
        raise not_available() from error


async def _do_nothing(_connection: Any) -> None:
    """Return a connection to the pool without a reset. A function call leaves no state, and
    asyncpg's reset would be another round trip."""


def _refusal(call: InferenceCall, terms: Terms, row: Any) -> WattfareError:
    """The error that the rules raise for the state in the database. The rules must also refuse the
    call."""
    totals = _totals(row, "o_billed", "o_reserved")
    operator = OperatorTotals(
        _totals(row, "o_app_billed", "o_app_reserved"),
        _totals(row, "o_all_billed", "o_all_reserved"),
    )
    paid_by = (row["o_payer"], row["o_funding"], row["o_funding_valid"])
    try:
        if call.grant_hash is not None:
            grant = None
            if row["o_known"]:
                limits = (row["o_requests"], row["o_cap"], row["o_expires_at"])
                grant = GrantBudget(*limits, totals, *paid_by)
            rules.reserve_grant(grant, call.bounds, row["o_now"], terms, operator)
        else:
            connection = None
            if row["o_known"]:
                state = (row["o_cap"], row["o_connected"], row["o_revocations"])
                connection = Connection(*state, *paid_by, row["o_others"] or 0)
            rules.reserve(connection, totals, call.bounds, terms, row["o_now"], operator)
    except WattfareError as refusal:
        return refusal
    raise RuntimeError("the database refuses what the rules allow")


def _totals(row: Any, billed: str, reserved: str) -> Totals:
    return Totals(row[billed] or 0, row[reserved] or 0)


def _driver_errors() -> tuple[type[Exception], ...]:
    return () if asyncpg is None else (asyncpg.PostgresError, asyncpg.InterfaceError)


def _reason(error: Exception, at: address.Address) -> str:
    """The first line of the driver's or the server's message, without the password."""
    said = one_line(str(error).split("\n")[0])
    if not said:
        late = isinstance(error, TimeoutError)
        said = "it did not answer in time" if late else type(error).__name__
    if at.password:
        said = said.replace(at.password, "…")
    if at.checks_certificate and "certificate" in said.lower():
        said += (
            ". The certificate is checked because of `channel_binding=require`, which asyncpg"
            " cannot do: give `sslrootcert`, or leave `channel_binding` out"
        )
    return said.rstrip(".")


def _address(url: str) -> address.Address:
    if asyncpg is None:
        raise invalid_request(
            "PostgreSQL needs an extra: pip install 'wattfare-mw[service,postgresql]'."
        )
    return address.read(url)


def _engine(at: address.Address, size: int, *, connect_seconds: float | None = None) -> AsyncEngine:
    async def connect() -> Any:
        # asyncpg parses the URL itself, so that both pools read it in the same way.
        try:
            return await asyncpg.connect(
                **at.arguments(),
                timeout=connect_seconds or CONNECT_SECONDS,
                command_timeout=10 * ANSWER_SECONDS,
            )
        except BaseException as error:
            forget_frames(error)  # they hold the password
            raise

    def connection() -> Any:
        # SQLAlchemy does the same for `async_creator`, which takes no other arguments.
        options: dict[str, Any] = {}
        if at.pooled:
            options = {
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: "",
            }
        return engine.dialect.dbapi.connect(async_creator_fn=connect, **options)  # type: ignore[union-attr]

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=connection,
        pool_size=size,
        max_overflow=0,
        pool_timeout=connect_seconds or CONNECT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,  # they have users' ids
    )
    # The ledger has no JSON columns. Setting up JSON would take queries outside of a transaction.
    dialect: Any = engine.dialect
    dialect.setup_asyncpg_json_codec = dialect.setup_asyncpg_jsonb_codec = _do_nothing
    return engine
