"""The users of a tested app and their budgets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from sqlalchemy import update

from .. import money
from ..errors import WattfareNotConnectedError
from ..service.api.state import ServiceState
from ..service.errors import revoked
from ..service.ids import new_id
from ..service.ledger import rules, schema
from ..service.records import Bounds, Connection, InferenceCall, Outcome, Totals
from ..types import ConnectionStatus
from .servers import REFUSED_FUNDING, Server, TestedApp

if TYPE_CHECKING:
    from .service import WattfareService

T = TypeVar("T")

Amount = Decimal | int | float | str
"""An amount in USD: ``5``, ``"0.01"`` or a Decimal."""

#: The model in the ledger's rows for amounts that a test spends.
_MODEL = "wattfare/spent-by-test"


class OfTest(NamedTuple):
    """The parts of a test that its users need.

    Attributes:
        server: returns the service. It raises an error after the test.
        app: returns the app of the test.
        wait_until_settled: waits for the calls of a user.
    """

    server: Callable[[], Server]
    app: Callable[[], TestedApp]
    wait_until_settled: Callable[[str], bool]


class AppUser:
    """A user of the tested app, with a budget. Methods that change it return the user, so they can
    be chained: ``wattfare.user("ann").connect(5).spend_to("0.01")``.

    Attributes:
        id: the app's own id of the user.
    """

    def __init__(self, service: WattfareService, user_id: str, test: OfTest) -> None:
        self._service = service
        self._test = test
        self.id = user_id

    def connect(self, cap: Amount | None = None) -> Self:
        """Connect a budget, or change its cap.

        Args:
            cap: in USD a month; None for no cap.

        Raises:
            ValueError: the cap is not a valid amount.
        """
        nanos = None if cap is None else nanos_of(cap)
        self._run(lambda state: state.store.connect(self._app_id, self.id, nanos))
        return self

    def spend(self, amount: Amount) -> Self:
        """Spend exactly this amount, in USD, as one call that the app did not make.

        Raises:
            WattfareError: the ledger refuses the call: the user has connected no budget, or less
                is left of it.
            ValueError: it is not a valid amount.
        """
        self._spend(nanos_of(amount))
        return self

    def spend_to(self, billed: Amount | None = None, *, left: Amount | None = None) -> Self:
        """Spend until this amount is billed in this month, or until this amount is left.

        ``spend_to("0.01")`` leaves the user with 0.01 USD billed in this month, and
        ``spend_to(left="0.01")`` with 0.01 USD left of the cap.

        Args:
            billed: the total of this month, in USD.
            left: the rest of the cap, in USD.

        Raises:
            WattfareError: the ledger refuses the call: the user has connected no budget, or less
                is left of it.
            ValueError: more has been spent already, there is no cap, or the amount is invalid.
        """
        if (billed is None) == (left is None):
            raise ValueError('Pass either spend_to("0.01") or spend_to(left="0.01").')
        connection, totals = self._account()
        if connection is None or not connection.connected:
            raise WattfareNotConnectedError(
                f"{self.id!r} has not connected a budget: user({self.id!r}).connect(5) comes first."
            )
        if billed is not None:
            more = nanos_of(billed) - totals.billed
        elif connection.cap is None:
            raise ValueError(
                f"{self.id!r} has no cap, so no amount can be left of it: set one with connect(5)."
            )
        else:
            assert left is not None
            more = connection.cap - totals.billed - nanos_of(left)
        if more < 0:
            raise ValueError(f"{self.id!r} has spent {money.usd(totals.billed)} USD already.")
        if more:
            self._spend(more)
        return self

    def revoke(self) -> Self:
        """Revoke the connection. Calls in flight are stopped, and the next call gets
        ``not_connected``."""

        async def revoke(state: ServiceState) -> None:
            await state.store.revoke(self._app_id, self.id)
            mine = (self._app_id, self.id)
            state.runner.cut_off(revoked(), lambda call: (call.app_id, call.user_id) == mine)

        self._run(revoke)
        return self

    def fund_fails(self) -> Self:
        """Let the provider refuse the key that pays. Calls get ``funding_invalid`` until the user
        connects again. A user without a connection is connected first."""
        connection, _ = self._account()
        if connection is None or not connection.connected:
            self.connect()
        table = schema.connections
        statement = (
            update(table)
            .where(table.c.app_id == self._app_id, table.c.user_id == self.id)
            .values(funding_id=REFUSED_FUNDING)
        )
        self._run(lambda state: state.store.transact(lambda sql: sql.execute(statement).rowcount))
        return self

    def status(self) -> ConnectionStatus:
        """The status that the app gets for this user: connected or not, the cap, and this month's
        usage. It waits up to a second for the user's calls to settle."""
        self._test.wait_until_settled(self.id)
        connection, totals = self._account()
        terms = self._run_now(lambda state: state.terms)
        return rules.status(connection, totals, terms)

    @property
    def billed(self) -> Decimal:
        """The total that the user was billed in this test, in USD. See
        :meth:`.WattfareService.billed`."""
        return self._service.billed(self.id)

    @property
    def reserved(self) -> Decimal:
        """The amount that the user's calls in flight have reserved, in USD."""
        return self._service.reserved(self.id)

    def __repr__(self) -> str:
        return f"AppUser({self.id!r})"

    @property
    def _app_id(self) -> str:
        return self._test.app().id

    def _run(self, job: Callable[[ServiceState], Awaitable[T]]) -> T:
        return self._test.server().run(job)

    def _run_now(self, job: Callable[[ServiceState], T]) -> T:
        async def run(state: ServiceState) -> T:
            return job(state)

        return self._run(run)

    def _account(self) -> tuple[Connection | None, Totals]:
        return self._run(lambda state: state.store.account(self._app_id, self.id))

    def _spend(self, nanos: int) -> None:
        name = new_id()
        call = InferenceCall(
            id=name,
            app_id=self._app_id,
            user_id=self.id,
            model=_MODEL,
            bounds=Bounds(nanos, nanos),
            request_id=name,
        )

        async def spend(state: ServiceState) -> None:
            await self._test.server().keep_lease()
            await state.store.reserve(call, state.terms)
            outcome = Outcome(ended="completed", generated=True, cost=nanos, claimed=nanos)
            await state.store.settle(name, call.account, outcome)

        self._run(spend)


def nanos_of(amount: Amount) -> int:
    """An amount in USD as nano-dollars.

    Raises:
        ValueError: it is not a number, negative, too large, or not a whole number of nano-dollars.
    """
    try:
        number = money.amount(Decimal(amount) if isinstance(amount, str) else amount)
    except (InvalidOperation, ValueError):
        number = None
    if number is None or money.nanos_floor(number) != money.nanos_ceil(number):
        raise ValueError(
            f'{amount!r} is not an amount in USD. Write 5, "0.01" or Decimal("0.01"), with up to '
            "9 decimal places."
        )
    if number > money.MAX_CAP_USD:
        raise ValueError(f"{amount!r} is more than {money.MAX_CAP_USD:,} USD.")
    return money.nanos_floor(number)
