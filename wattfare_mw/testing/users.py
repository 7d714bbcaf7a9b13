"""The users of the tested app, and their budgets."""

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

#: The name of the model in the ledger's rows for amounts that a test spends.
_MODEL = "wattfare/spent-by-test"


class OfTest(NamedTuple):
    """The parts of a test that :class:`AppUser` needs.

    Attributes:
        server: returns the service. Raises an error after the end of the test.
        app: returns the app of the test.
        wait_until_settled: waits for the calls of a user.
    """

    server: Callable[[], Server]
    app: Callable[[], TestedApp]
    wait_until_settled: Callable[[str], bool]


class AppUser:
    """A user of the tested app. Methods that change the budget return the user, so they can be
    chained: ``wattfare.user("ann").connect(5).spend_to("0.01")``.

    Attributes:
        id: the app's own id of the user.
    """

    def __init__(self, service: WattfareService, user_id: str, test: OfTest) -> None:
        self._service = service
        self._test = test
        self.id = user_id

    def connect(self, cap: Amount | None = None) -> Self:
        """Connect a budget, or change the cap of the connected budget.

        Args:
            cap: the cap, in USD per month. None for no cap.

        Raises:
            ValueError: the cap is not a valid amount.
        """
        nanos = None if cap is None else nanos_of(cap)
        self._run(lambda state: state.store.connect(self._app_id, self.id, nanos))
        return self

    def spend(self, amount: Amount) -> Self:
        """Bill exactly this amount to the user, in USD, as if for one call.

        Raises:
            WattfareError: the user has not connected a budget, or less than this amount is left.
            ValueError: the amount is invalid.
        """
        self._spend(nanos_of(amount))
        return self

    def spend_to(self, billed: Amount | None = None, *, left: Amount | None = None) -> Self:
        """Bill the user so that exactly this amount is billed in this month, or exactly this amount
        is left.

        After ``spend_to("0.01")``, 0.01 USD are billed in this month. After
        ``spend_to(left="0.01")``, 0.01 USD are left of the cap.

        Args:
            billed: the total of this month, in USD.
            left: the remaining part of the cap, in USD.

        Raises:
            WattfareError: the user has not connected a budget, or less than this amount is left.
            ValueError: the user has already spent more, the user has no cap, or the amount is
                invalid.
        """
        if (billed is None) == (left is None):
            raise ValueError('Pass either spend_to("0.01") or spend_to(left="0.01").')
        connection, totals = self._account()
        if connection is None or not connection.connected:
            raise WattfareNotConnectedError(
                f"{self.id!r} has not connected a budget. Call user({self.id!r}).connect(5) first."
            )
        if billed is not None:
            more = nanos_of(billed) - totals.billed
        elif connection.cap is None:
            raise ValueError(
                f"{self.id!r} has no cap, so `left` has no meaning. Set a cap with connect(5)."
            )
        else:
            assert left is not None
            more = connection.cap - totals.billed - nanos_of(left)
        if more < 0:
            raise ValueError(f"{self.id!r} has already spent {money.usd(totals.billed)} USD.")
        if more:
            self._spend(more)
        return self

    def revoke(self) -> Self:
        """Revoke the connection. This stops calls in flight, and the next call gets
        ``not_connected``."""

        async def revoke(state: ServiceState) -> None:
            await state.store.revoke(self._app_id, self.id)
            mine = (self._app_id, self.id)
            state.runner.cut_off(revoked(), lambda call: (call.app_id, call.user_id) == mine)

        self._run(revoke)
        return self

    def fund_fails(self) -> Self:
        """Make the provider refuse the key of the payer's funding. Calls get ``funding_invalid``
        until the user connects again. If the user is not connected, this connects a budget
        first."""
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
        """The status that the app gets for this user: the connection, the cap, and this month's
        usage. This first waits for the user's calls to be settled, for a second at most."""
        self._test.wait_until_settled(self.id)
        connection, totals = self._account()
        terms = self._run_now(lambda state: state.terms)
        return rules.status(connection, totals, terms)

    @property
    def billed(self) -> Decimal:
        """The amount billed to the user in this test, in USD. See
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
    """Convert an amount in USD to nano-dollars.

    Raises:
        ValueError: the amount is not a number, negative, too large, or not a whole number of
            nano-dollars.
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
