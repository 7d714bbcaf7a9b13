"""Runs the service in a thread, with a real socket and a ledger in memory.

The service starts once per process. Each test has its own app in it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import uvicorn
from sqlalchemy import Connection as Sql
from sqlalchemy import func, insert, select
from uvicorn.server import ServerState

from ..errors import WattfareAuthError
from ..headers import Headers
from ..service import keys
from ..service.api.state import ServiceState
from ..service.asgi import create_app
from ..service.errors import shutting_down
from ..service.ledger import schema
from ..service.ledger.clock import lease_now
from ..service.ledger.sqlite.store import SQLiteStore
from ..service.ledger.store import Store
from ..service.public_url import of_port
from ..service.records import Account, App, Granted, InferenceCall, Outcome, Terms
from ..service.server import KEEPALIVE_SECONDS
from ..service.settings import Settings
from ..service.sockets import LimitedProtocol
from .address import STANDING_APP, Address, take_address
from .provider import ScriptedProvider
from .recording import CURRENT, Record, Recorder
from .scripts import Script

T = TypeVar("T")

#: The key of a funding that the provider refuses.
REFUSED_FUNDING = "refused"
_PAYER = "tests"
#: How long to wait for the service's start, for an answer and for its end, in seconds.
START_SECONDS = 60
ANSWER_SECONDS = 20
STOP_SECONDS = 5
#: How long to wait for the calls that the end of a test stops, in seconds.
CUT_OFF_SECONDS = 1.0

# A library that freezes the time for a test replaces `time.monotonic`. The event loop would then
# stop, so it uses this reference.
steady_seconds: Callable[[], float] = time.monotonic
if hasattr(time, "clock_gettime"):
    steady_seconds = partial(time.clock_gettime, time.CLOCK_MONOTONIC)


class Clock:
    """The clock of the service. Months, sessions, grants and rate limits use it.

    At the start of each test, it has the machine's time.
    """

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        """The time of the service, in UTC."""
        return datetime.now(UTC) + self._ahead

    def advance(
        self,
        delta: timedelta | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> datetime:
        """Move the clock forward, and return its new time. This does not wait.

        Raises:
            TypeError: ``delta`` is not a timedelta.
            ValueError: the clock would go back.
        """
        if not isinstance(delta, timedelta | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Give the number a unit, such as advance(days={delta!r}).")
        more = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if delta is not None:
            more += delta
        if more < timedelta():
            raise ValueError("The service's clock only goes forward.")
        self._ahead += more
        return self.now()

    def timestamp(self) -> float:
        """The time of the service, in Unix seconds."""
        return time.time() + self._ahead.total_seconds()

    def reset(self) -> None:
        """Set the clock to the machine's time."""
        self._ahead = timedelta()

    def __repr__(self) -> str:
        return f"Clock({self.now():%Y-%m-%d %H:%M:%S} UTC)"


class TestedApp:
    """The app of one test, with its keys, its script and its calls."""

    __test__ = False  # not a test class of pytest

    def __init__(self) -> None:
        self.app, self.keys = keys.new_app("tests", "test")
        self.script = Script()
        self.records: list[Record] = []
        #: Notified when a call is settled.
        self.settled = threading.Condition()
        self._reserved: dict[str, Record] = {}

    @property
    def id(self) -> str:
        """The id of the app."""
        return self.app.id

    def count_reserved(self, sql: Sql, user_id: str | None) -> int:
        """How many calls of this user are in flight. None counts those of all users and grants."""
        table = schema.reservations
        where = [table.c.app_id == self.id]
        if user_id is not None:
            where.append(table.c.user_id == user_id)
        return sql.execute(select(func.count()).select_from(table).where(*where)).scalar_one()

    def note_reserved(self, call: InferenceCall, amount: int) -> None:
        """Record the reserved amount of a call, in nano-dollars."""
        record = CURRENT.get()
        if record is not None:
            record.reserved = amount
            self._reserved[call.id] = record

    def note_settled(self, reservation_id: str, outcome: Outcome, billed: int) -> None:
        """Record the billed amount of a call, in nano-dollars."""
        record = self._reserved.pop(reservation_id, None)
        if record is not None:
            record.reserved, record.billed = 0, billed
            record.prompt_tokens = outcome.prompt_tokens
            record.completion_tokens = outcome.completion_tokens
        with self.settled:
            self.settled.notify_all()


class Server:
    """A service in a thread."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.clock = Clock()
        self.is_busy = False
        self._tested: TestedApp | None = None
        self._tests = 0
        self._pid = os.getpid()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wattfare-testing", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise RuntimeError(f"The service did not start in {START_SECONDS} seconds.")
        if self._failure is not None:
            raise RuntimeError("The service did not start.") from self._failure

    @property
    def is_usable(self) -> bool:
        """False if the thread has ended, or if this is a forked child of its process."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def run(self, job: Callable[[ServiceState], Awaitable[T]]) -> T:
        """Run a job in the service's thread, and wait for its result.

        Raises:
            RuntimeError: the service does not run in this process, or does not answer.
        """
        if self._pid != os.getpid():
            raise RuntimeError(
                "The service runs in the parent of this forked process. This process can call the"
                " service over HTTP, but only the parent can use this object."
            )
        if not self._thread.is_alive():
            raise RuntimeError("The service has ended.") from self._failure

        async def carry_out() -> T:
            return await job(self._state)

        future = asyncio.run_coroutine_threadsafe(carry_out(), self._loop)
        try:
            return future.result(ANSWER_SECONDS)
        except TimeoutError:
            future.cancel()
            raise RuntimeError(f"The service did not answer in {ANSWER_SECONDS} seconds.") from None

    def begin(self) -> TestedApp:
        """Create an app for a test. Until :meth:`end`, the address's keys belong to this app."""
        tested = TestedApp()
        self.clock.reset()
        self.run(lambda state: state.store.add_app(tested.app))
        self._tests += 1
        self._tested = tested
        return tested

    def end(self) -> None:
        """End the test, and stop its remaining calls."""
        tested = self._tested
        if tested is None or not self.is_usable:
            return

        async def cut_off(state: ServiceState) -> None:
            state.runner.cut_off(shutting_down(), lambda call: call.app_id == tested.id)

        try:
            self.run(cut_off)
            self.wait_until_settled(None, CUT_OFF_SECONDS)
        finally:
            self._tested = None

    def wait_until_settled(self, user_id: str | None, timeout: float) -> bool:
        """Wait until no call of the test is in flight. Returns False if one still is.

        Args:
            user_id: the user whose calls to wait for. None for all users and grants.
            timeout: the maximum time to wait, in seconds.
        """
        tested = self._tested
        if tested is None:
            return True
        deadline = steady_seconds() + timeout
        while self.run(
            lambda state: state.store.transact(lambda sql: tested.count_reserved(sql, user_id))
        ):
            left = deadline - steady_seconds()
            if left <= 0:
                return False
            with tested.settled:
                tested.settled.wait(min(left, 0.05))
        return True

    def stop(self) -> None:
        """End the thread. If it does not end, the process can still exit, because the thread is a
        daemon."""
        if self.is_usable:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_SECONDS)

    # -- in the thread

    @property
    def client_address(self) -> str:
        """The client address that the service sees. It is different for each test."""
        number = self._tests % 2**24
        return f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"

    def app_of(self, headers: Headers) -> TestedApp | None:
        """The app of the current test, if the request has one of its secret keys."""
        tested = self._tested
        if tested is None:
            return None
        key = (headers.first("authorization") or "").rpartition(" ")[2]
        return tested if keys.app_id_of(key) in (tested.id, STANDING_APP) else None

    def app_with_id(self, app_id: str) -> TestedApp | None:
        """The app of the current test, if it has this id."""
        tested = self._tested
        return tested if tested is not None and tested.id == app_id else None

    def current_app(self) -> App:
        """The app of the current test, which owns the address's keys.

        Raises:
            WattfareAuthError: there is no current test.
        """
        tested = self._tested
        if tested is None:
            raise WattfareAuthError(
                "No test is using this service. In the test, use the fixture `wattfare` or open a"
                " WattfareService."
            )
        return App(
            tested.id,
            tested.app.name,
            tested.app.mode,
            keys.digest(self.address.secret_key),
            self.address.publishable_key,
        )

    async def keep_lease(self) -> None:
        """Renew the lease. It may have expired while a debugger had stopped this thread."""
        for _ in range(2):
            if self._state.runner.seconds_left > 0:
                return
            await self._state.runner.renew()

    def _run(self) -> None:
        try:
            with asyncio.Runner(debug=False, loop_factory=_Loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self.address.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        settings = Settings(database="sqlite://", public_url=of_port(self.address.port))
        app = create_app(
            settings,
            model=ScriptedProvider(hold=settings.held),
            make_store=self._open_store,
            clock=self.clock.timestamp,
        )
        config = uvicorn.Config(
            Recorder(app, self),
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEPALIVE_SECONDS,
            ws="none",
            interface="asgi3",
            http=_Protocol,
            lifespan="off",
        )
        # As an argument of Config, this would remove the handlers of the process's access log.
        config.access_log = False
        config.load()
        connections = ServerState()

        def make_protocol() -> _Protocol:
            return _Protocol(config=config, server_state=connections, app_state={}, _loop=loop)

        async with app.router.lifespan_context(app):
            self._state: ServiceState = app.state.service
            server = await loop.create_server(make_protocol, sock=self.address.socket)
            self._ready.set()
            await self._stop.wait()
            server.close()
            self._state.runner.stop(shutting_down())
            for connection in list(connections.connections):
                connection.transport.abort()
            if connections.tasks:
                _, late = await asyncio.wait(connections.tasks, timeout=CUT_OFF_SECONDS)
                for task in late:
                    task.cancel()

    async def _open_store(self, database: str) -> Store:
        store = _Store(database, self)
        await store.transact(_add_refused_funding)
        return store


class _Loop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return steady_seconds()


class _Protocol(LimitedProtocol):
    """A connection that a test can break."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["wattfare.connection"] = self.transport  # type: ignore[typeddict-unknown-key]


class _Store(SQLiteStore):
    """A ledger in memory, with the clock of the tests."""

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url, clock=server.clock.now)
        self._lease_clock = lease_now  # a test that moves the clock must not end a lease
        self._server = server

    async def app_by_id(self, app_id: str) -> App | None:
        if app_id == STANDING_APP:
            return self._server.current_app()
        app = await super().app_by_id(app_id)
        if app is not None and self._server.app_with_id(app_id) is None:
            raise WattfareAuthError("This credential belongs to a test that has ended.")
        return app

    async def app_by_publishable_key(self, key: str) -> App | None:
        if key == self._server.address.publishable_key:
            return self._server.current_app()
        return await super().app_by_publishable_key(key)

    async def settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        billed = await super().settle(reservation_id, account, outcome)
        tested = self._server.app_with_id(account.app_id)
        if tested is not None and billed is not None:
            tested.note_settled(reservation_id, outcome, billed)
        return billed

    async def _reserve(self, call: InferenceCall, terms: Terms, holder: str) -> Granted:
        granted = await super()._reserve(call, terms, holder)
        tested = self._server.app_with_id(call.app_id)
        if tested is not None:
            tested.note_reserved(call, granted.amount)
        return granted


def _add_refused_funding(sql: Sql) -> None:
    sql.execute(insert(schema.payers).values(id=_PAYER, created_at=0))
    sql.execute(
        insert(schema.funding).values(
            id=REFUSED_FUNDING,
            payer_id=_PAYER,
            kind="key",
            upstream="https://tests.invalid/v1",
            label="A key of the tests",
            state="invalid",
            created_at=0,
            checked_at=0,
        )
    )


_lock = threading.Lock()
_servers: list[Server] = []


def first_server() -> Server:
    """The service that the tests of this process share. The first call starts the service."""
    with _lock:
        _forget_unusable()
        if not _servers:
            _servers.append(Server(take_address()))
        return _servers[0]


def take_server() -> Server:
    """Take a service that no other test is using. Give it back with :func:`give_back`."""
    with _lock:
        _forget_unusable()
        for server in _servers:
            if not server.is_busy:
                break
        else:
            server = Server(take_address())
            _servers.append(server)
        server.is_busy = True
        return server


def give_back(server: Server) -> None:
    """Make a service available to the next test."""
    with _lock:
        server.is_busy = False


def stop_servers() -> None:
    """End all services of this process."""
    with _lock:
        while _servers:
            _servers.pop().stop()


def _forget_unusable() -> None:
    _servers[:] = [server for server in _servers if server.is_usable]
