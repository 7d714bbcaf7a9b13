"""``WattfareService``, a test's interface to the service."""

from __future__ import annotations

import atexit
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

from sqlalchemy import Connection as Sql
from sqlalchemy import func, select

from .. import money
from ..client import AsyncWattfare, Wattfare
from ..errors import STATUS_BY_CODE, WattfareAuthError, WattfareError, make_error
from ..service import keys
from ..service.api.state import ServiceState
from ..service.errors import upstream_failed
from ..service.ledger import rules, schema
from ..service.records import GRANT_SECONDS, USERS_PAY, Bounds, Connection, GrantBudget, Totals
from ..transport import hidden
from ..types import UserId, encode, user_id_text
from .address import Environment, environ
from .recording import RecordedCall
from .scripts import FailOn, Fault, Reply, tool_calls_in, words_in
from .servers import (
    Clock,
    Server,
    TestedApp,
    first_server,
    give_back,
    stop_servers,
    take_server,
)
from .users import Amount, AppUser, OfTest, nanos_of

T = TypeVar("T")

#: How long to wait for calls in flight, in seconds, when a test reads the billed amount and when it
#: ends.
BILLED_SECONDS = 1.0
END_SECONDS = 2.0

_ADVICE = (
    "Read each stream to its end, or close it. If a test leaves a stream open on purpose, mark the"
    " test with @pytest.mark.wattfare(allow_reserved=True)."
)

atexit.register(stop_servers)


class SharedService:
    """The service that the tests of a process share. Its address and its keys stay the same, so a
    web app that is created only once can use them. In each test, the service has a new record of
    the app, with these keys.

    Attributes:
        url: the service's address.
    """

    def __init__(self, server: Server) -> None:
        self._address = server.address
        self.url = server.address.url

    @property
    def secret_key(self) -> str:
        """The secret key of the current test's app."""
        return hidden(self._address.secret_key)

    @property
    def publishable_key(self) -> str:
        """The publishable key of the current test's app."""
        return self._address.publishable_key

    @property
    def environ(self) -> dict[str, str]:
        """``WATTFARE_SECRET_KEY``, ``WATTFARE_BASE_URL`` and ``WATTFARE_PUBLISHABLE_KEY``."""
        return self._address.environ

    def __repr__(self) -> str:
        return f"SharedService(url={self.url!r})"


def shared_service() -> SharedService:
    """The service that the tests of this process share. The first call starts the service."""
    return SharedService(first_server())


class WattfareService:
    """A Wattfare service for one test. It is a real service on a real socket, in a thread of this
    process.

    ::

        with WattfareService() as wattfare:
            wattfare.user("ann").connect(5)

    The service has a new app without users. It accepts any model, at the prices of the built-in
    model: 0.000001 USD per word of the prompt, and 0.000002 USD per word of the answer. It is
    thread-safe. The first service of a process takes a second to start. The next ones take a few
    milliseconds.

    Args:
        set_environment: set ``WATTFARE_SECRET_KEY``, ``WATTFARE_BASE_URL`` and
            ``WATTFARE_PUBLISHABLE_KEY`` until the service is closed.
        allow_reserved: True to skip the check at the end that each call is settled.
    """

    def __init__(self, *, set_environment: bool = True, allow_reserved: bool = False) -> None:
        self._set_environment = set_environment
        self._allow_reserved = allow_reserved
        self._opened: tuple[Server, TestedApp] | None = None
        self._environment: Environment | None = None
        self._clients: list[Wattfare] = []

    # -- start and stop

    def open(self) -> Self:
        """Start the service. A ``with`` block does this."""
        if self._opened is not None:
            raise RuntimeError("This service is already open.")
        server = take_server()
        try:
            self._opened = server, server.begin()
        except BaseException:
            give_back(server)
            raise
        if self._set_environment:
            self._environment = Environment(self.environ)
        return self

    def close(self, *, check: bool = True) -> None:
        """Stop the service. A ``with`` block does this. If the service is closed, this does
        nothing.

        Args:
            check: True to check that all calls are settled. This waits for them, for up to two
                seconds.

        Raises:
            AssertionError: a call is not settled, so it still reserves a part of a budget.
        """
        if self._opened is None:
            return
        server, _ = self._opened
        left = ""
        try:
            if (
                check
                and not self._allow_reserved
                and not self._wait_until_settled(None, END_SECONDS)
            ):
                left = self._describe_calls_in_flight()
        finally:
            try:
                server.end()
            finally:
                if self._environment is not None:
                    self._environment.restore()
                for client in self._clients:
                    client.close()
                self._opened = None
                give_back(server)
        if left:
            raise AssertionError(left)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(check=error is None)

    # -- for the app

    @property
    def url(self) -> str:
        """The service's address, such as ``http://127.0.0.1:49152``. It is the ``base_url`` for the
        app."""
        return self._server.address.url

    @property
    def secret_key(self) -> str:
        """The secret key of this test's app."""
        return hidden(self._tested.keys.secret_key)

    @property
    def publishable_key(self) -> str:
        """The publishable key of this test's app."""
        return self._tested.keys.publishable_key

    @property
    def environ(self) -> dict[str, str]:
        """``WATTFARE_SECRET_KEY``, ``WATTFARE_BASE_URL`` and ``WATTFARE_PUBLISHABLE_KEY``."""
        return environ(self.url, self.secret_key, self.publishable_key)

    def client(self) -> Wattfare:
        """Create a client for this test's app. It is closed when the test ends."""
        client = Wattfare(self.secret_key, base_url=self.url)
        self._clients.append(client)
        return client

    def async_client(self) -> AsyncWattfare:
        """Create an async client for this test's app. Use it in an ``async with`` block, which
        closes it."""
        return AsyncWattfare(self.secret_key, base_url=self.url)

    # -- users and their budgets

    def user(self, user_id: UserId) -> AppUser:
        """A user of the app, by the app's own id. Any valid id works.

        Raises:
            WattfareError: ``invalid_request`` if the id is invalid.
        """
        test = OfTest(lambda: self._server, lambda: self._tested, self._wait_until_settled)
        return AppUser(self, user_id_text(user_id), test)

    def grant(self, requests: int = 1, max_usd: Amount = 1) -> str:
        """Create a one-time grant and return its token.

        Args:
            requests: the maximum number of calls.
            max_usd: the maximum cost of all calls together, in USD.
        """
        token = keys.new_grant_token()
        digest = keys.digest(token)
        budget = GrantBudget(requests, nanos_of(max_usd), self._unix_time() + GRANT_SECONDS)
        self._run(
            lambda state: state.store.add_grant(
                self._tested.id, digest, budget, state.terms, self._unix_time()
            )
        )
        return hidden(token)

    # -- the model

    def reply(
        self,
        text: str | Mapping[str, Any] | list[Any] = "",
        *,
        tool_calls: Iterable[object] = (),
        cost: Amount | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        pause: float = 0,
        times: int | None = None,
    ) -> None:
        """Set the model's reply. If you set several replies, each call gets the next one, and the
        last reply is used for all further calls. A reply with tool calls is used only once. Without
        a reply, the model repeats the user's last message.

        Args:
            text: the text of the reply. A stream sends it word by word. A dict or a list is sent as
                JSON.
            tool_calls: pairs of a name and its arguments: ``[("get_weather", {"city": "Paris"})]``.
            cost: the cost of the call, in USD. None for the price of its words.
            prompt_tokens: the billed tokens of the prompt. None for the number of its words.
            completion_tokens: the billed tokens of the answer. None for the number of its words.
            pause: the time before each word, in seconds.
            times: how many calls get this reply. Later calls get the next reply or, if there is
                none, the user's last message.
        """
        if not isinstance(text, (str, list, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"A reply must be a str, or a dict or a list for JSON, not {type(text).__name__}."
            )
        if not isinstance(text, str):
            text = encode(text).decode()
        calls = tool_calls_in(tool_calls, self._tested.script.numbers)
        if times is None and calls:
            times = 1
        _check_at_least(1, times=times)
        _check_at_least(
            0, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, pause=pause
        )
        self._tested.script.add_reply(
            Reply(
                words=words_in(text),
                tool_calls=calls,
                cost=None if cost is None else nanos_of(cost),
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                pause=pause,
                times=times,
            )
        )

    def tool_call(self, name: str, arguments: Mapping[str, Any] | str = "{}") -> None:
        """Make the model call one tool. This is the same as ``reply(tool_calls=[(name,
        arguments)])``."""
        self.reply(tool_calls=[(name, arguments)])

    def fail(
        self,
        code: str,
        message: str | None = None,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        after: int | None = None,
        times: int = 1,
        on: FailOn = "model",
    ) -> None:
        """Make the next call fail, for any user. Without ``after``, the call is not billed.

        Args:
            code: ``not_connected``, ``budget_exceeded``, ``funding_invalid``, ``grant_invalid``,
                ``rate_limited``, ``auth``, ``invalid_request``, ``upstream`` or ``unknown``. With
                ``network``, the connection is closed without an answer.
            message: the text of the error. None for the service's own text.
            status: the HTTP status. None for the default status of the code.
            retry_after: the ``Retry-After`` of the response, in seconds.
            after: fail the next stream after this many events. These events are billed.
            times: how many calls fail.
            on: what fails: ``model`` (a call), ``token`` (creating a session token), ``status``,
                ``disconnect`` or ``models`` (the list of models).

        Raises:
            ValueError: the code is unknown, or a number is out of its range.
        """
        if code not in STATUS_BY_CODE:
            raise ValueError(
                f"{code!r} is not an error code. The codes are {', '.join(STATUS_BY_CODE)}."
            )
        _check_at_least(1, times=times)
        _check_at_least(0, after=after, retry_after=retry_after)
        if status is not None and not 400 <= status <= 599:
            raise ValueError("`status` must be from 400 to 599.")
        if on not in get_args(FailOn):
            raise ValueError(f"`on` must be one of {', '.join(get_args(FailOn))}, not {on!r}.")
        if after is not None and on != "model":
            raise ValueError("`after` is only for a model's stream: leave out `on`.")
        now = self.clock.now()

        def make() -> WattfareError:
            error = _error(code, now)
            if message is not None or status is not None:
                error = make_error(
                    code,
                    message or error.message,
                    status=status or error.http_status,
                    shortfall=error.shortfall,
                )
            error.retry_after = retry_after if retry_after is not None else error.retry_after
            return error

        self._tested.script.add_fault(Fault(None if code == "network" else make, after, on), times)

    def cut_stream(self, after: int, *, network: bool = False) -> None:
        """Make the next stream break off after this many events. Each event is one word, and is
        billed.

        Args:
            after: 0 or more.
            network: if False, the provider breaks off, and the stream ends with an ``upstream``
                error. If True, the connection between the app and the service breaks.
        """
        _check_at_least(0, after=after)
        error = (
            None if network else lambda: upstream_failed("The connection to the upstream broke.")
        )
        self._tested.script.add_fault(Fault(error, after), 1)

    @property
    def clock(self) -> Clock:
        """The clock of the service. ``clock.advance(days=31)`` starts a new month."""
        return self._server.clock

    # -- the calls and the bill

    def billed(self, user: UserId | None = None) -> Decimal:
        """The exact amount billed in this test, in USD. It includes all months, and amounts that
        the test spent with :meth:`.AppUser.spend`. This first waits for the calls in flight to be
        settled, for a second at most.

        Args:
            user: the user's id. None for all users and grants of the app.
        """
        user_id = None if user is None else user_id_text(user)
        self._wait_until_settled(user_id)
        return self._sum(schema.ledger, "billed_nanos", user_id)

    def reserved(self, user: UserId | None = None) -> Decimal:
        """The amount that the calls in flight have reserved, in USD.

        Args:
            user: the user's id. None for all users and grants of the app.
        """
        return self._sum(
            schema.reservations, "reserved_nanos", None if user is None else user_id_text(user)
        )

    @property
    def calls(self) -> list[RecordedCall]:
        """The inference calls of the app and their current state, oldest first."""
        return [record.snapshot() for record in list(self._tested.records)]

    def __repr__(self) -> str:
        return f"WattfareService(url={self.url!r})" if self._opened else "WattfareService()"

    # -- within

    @property
    def _server(self) -> Server:
        return self._require_open[0]

    @property
    def _tested(self) -> TestedApp:
        return self._require_open[1]

    @property
    def _require_open(self) -> tuple[Server, TestedApp]:
        if self._opened is None:
            raise RuntimeError(
                "This service is closed. Use it in a `with` block: with WattfareService() as"
                " wattfare:"
            )
        return self._opened

    def _run(self, job: Callable[[ServiceState], Awaitable[T]]) -> T:
        return self._server.run(job)

    def _read(self, job: Callable[[Sql], T]) -> T:
        return self._run(lambda state: state.store.transact(job))

    def _unix_time(self) -> int:
        return int(self.clock.timestamp())

    def _sum(self, table: Any, column: str, user_id: str | None) -> Decimal:
        where = [table.c.app_id == self._tested.id]
        if user_id is not None:
            where.append(table.c.user_id == user_id)
        query = select(func.coalesce(func.sum(table.c[column]), 0)).where(*where)
        return money.usd(int(self._read(lambda sql: sql.execute(query).scalar_one())))

    def _wait_until_settled(self, user_id: str | None, timeout: float = BILLED_SECONDS) -> bool:
        return self._server.wait_until_settled(user_id, timeout)

    def _describe_calls_in_flight(self) -> str:
        in_flight = [call for call in self.calls if call.reserved]
        lines = [
            f"- {call.user or 'a grant'} reserves {call.reserved} USD for"
            f" {'a stream' if call.stream else 'an answer'} of {call.model}"
            f" (request_id={call.request_id})"
            for call in in_flight
        ]
        return "\n".join(
            ["The test has ended, but calls of the app are still running:", *lines, _ADVICE]
        )


def _check_at_least(least: int, **numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number >= least:
            raise ValueError(f"`{name}` must be {least} or more.")


def _error(code: str, now: datetime) -> WattfareError:
    """The error for this code, with the service's own text."""
    at = int(now.timestamp())
    bounds = Bounds(1_000_000, 1_000_000)
    connections = {
        "not_connected": None,
        "budget_exceeded": Connection(cap=0),
        "funding_invalid": Connection(funding_valid=False),
    }
    try:
        if code in connections:
            rules.reserve(connections[code], Totals(), bounds, USERS_PAY, at)
        if code == "grant_invalid":
            rules.reserve_grant(None, bounds, at)
    except WattfareError as refusal:
        return refusal
    if code == "auth":
        return WattfareAuthError("The secret key is not valid.")
    if code == "upstream":
        return upstream_failed("The upstream failed (500).")
    return make_error(code, _MESSAGES.get(code, "The service failed."))


_MESSAGES = {
    "rate_limited": "At most 600 calls a minute for this user.",
    "invalid_request": "The upstream refused the request (400).",
}
