"""Plain objects that all parts of the service share. Amounts are integers of nano-dollars, and
secrets are hashes."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..money import NANOS_PER_USD

#: The default cap of a grant, unless the operator sets another one.
DEFAULT_GRANT = NANOS_PER_USD
#: The default amount that a call without a bound holds. The operator can set another one.
UNBOUNDED_HOLD = NANOS_PER_USD
#: How long a call may continue without its client, in seconds.
DETACHED_SECONDS = 300.0
#: How long a one-time grant is valid, in seconds.
GRANT_SECONDS = 24 * 3600

Mode = Literal["test", "live"]


class App(msgspec.Struct, frozen=True):
    """An app that is registered with the service.

    Attributes:
        other_secret_hash: the hash of the older secret key, while two keys are valid.
    """

    id: str
    name: str
    mode: Mode
    secret_hash: str
    publishable_key: str
    other_secret_hash: str | None = None

    def __repr__(self) -> str:
        return f"App({self.id!r}, mode={self.mode!r})"


# -- budgets


class Connection(msgspec.Struct, frozen=True):
    """A user's budget at one app.

    Attributes:
        cap: the monthly cap; None for no cap.
        connected: False after a revocation. The row is kept, so that its totals still count if the
            user connects again.
        revocations: how many times the connection was revoked. A call that was reserved before the
            last revocation is cut off, even if the user has connected again since.
        payer_id: the person whose budget it is; ``""`` for none, as in a test app.
        funding_id: the payer's funding that pays; None if the operator pays, or if the upstream
            costs nothing.
        funding_valid: False if the upstream has refused that funding's key, or if it was removed.
        others: the sum of this month's bills and reservations of this user's other payers.
    """

    cap: int | None = None
    connected: bool = True
    revocations: int = 0
    payer_id: str = ""
    funding_id: str | None = None
    funding_valid: bool = True
    others: int = 0


class Totals(msgspec.Struct, frozen=True):
    """The totals of one account: its bills, and the reservations of its calls in flight."""

    billed: int = 0
    reserved: int = 0


class OperatorTotals(msgspec.Struct, frozen=True):
    """The totals that count towards the operator's ceilings this month: of one app, and of all
    apps."""

    app: Totals = Totals()
    all_apps: Totals = Totals()


class Granted(msgspec.Struct, frozen=True):
    """The reserved amount of a call, and the funding that pays.

    Attributes:
        amount: the reserved amount, in nano-dollars.
        funding_id: the funding whose key the upstream gets; None for the operator's key.
    """

    amount: int
    funding_id: str | None = None


class GrantBudget(msgspec.Struct, frozen=True):
    """A one-time grant: a number of calls and an amount, until ``expires_at`` (Unix seconds). Its
    payer and funding have the same meaning as in a :class:`Connection`."""

    requests: int
    cap: int
    expires_at: int
    totals: Totals = Totals()
    payer_id: str = ""
    funding_id: str | None = None
    funding_valid: bool = True


class Terms(msgspec.Struct, frozen=True):
    """The operator's rules: who pays the upstream, and the limits.

    Attributes:
        operator_pays: True if the operator's own money pays.
        ceiling: the limit of each user per month, if the operator pays; None for no limit.
        app_ceiling: the limit of each app per month, if the operator pays; None for no limit.
        total_ceiling: the limit of all apps together per month, if the operator pays; None for no
            limit.
        grant_ceiling: the limit of all grants of an app together, if the operator pays; None allows
            no grants.
        grant_default: the cap of a grant if the app does not ask for one.
        grant_max: the largest cap of one grant, if the operator pays; None for ``grant_default``.
    """

    operator_pays: bool = False
    ceiling: int | None = None
    grant_ceiling: int | None = None
    grant_default: int = DEFAULT_GRANT
    grant_max: int | None = None
    app_ceiling: int | None = None
    total_ceiling: int | None = None


USERS_PAY = Terms()


# -- calls


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of a call's cost.

    Attributes:
        least: the smallest useful reservation. It is equal to ``most`` if the call must not be
            shortened.
        most: the highest possible cost. With a smaller reservation, the answer is shortened.
        requires_cap: True if only a cap can bound the cost.
        because: the fields of the request that require a cap. The error names them.
        unbounded: True if ``most`` is only an amount to hold, and the call can cost more. If its
            process dies, the call is billed the last recorded cost, not the whole hold.
    """

    least: int
    most: int
    requires_cap: bool = False
    unbounded: bool = False
    because: tuple[str, ...] = ()

    def holding(self, amount: int, because: tuple[str, ...] = ()) -> Bounds:
        """The bounds of the same call if its cost has no bound. It holds this amount in
        nano-dollars, or its own bound if that is more.

        Args:
            because: the fields whose cost has no bound.
        """
        # Even if its tokens are free, the call may cost something, so the budget must not be empty.
        return Bounds(
            max(self.least, 1),
            max(self.most, amount),
            requires_cap=True,
            unbounded=True,
            because=because,
        )


#: The bounds of a call that costs nothing.
FREE = Bounds(0, 0)


class IdempotencyKey(msgspec.Struct, frozen=True):
    """An ``Idempotency-Key`` and the body of its call, both as hashes."""

    name: str
    body: str


class PriorCall(msgspec.Struct, frozen=True):
    """The call that has used an idempotency key: the hash of its body, and how it ended (None while
    it runs)."""

    body: str
    ended: str | None


class Account(msgspec.Struct, frozen=True):
    """The account of a call: a user or a grant of this app, never both. Each row of the ledger has
    one account. (The person who pays is the *payer*.)"""

    app_id: str
    user_id: str | None = None
    grant_hash: str | None = None


class InferenceCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that needs a reservation. A user or a grant pays, never both."""

    id: str
    app_id: str
    user_id: str | None = None
    grant_hash: str | None = None
    model: str
    bounds: Bounds
    request_id: str
    stream: bool = False
    key: IdempotencyKey | None = None

    @property
    def account(self) -> Account:
        """The user or the grant that pays."""
        return Account(self.app_id, self.user_id, self.grant_hash)

    @property
    def account_name(self) -> str:
        """The user or the grant that pays, as one string."""
        return f"grant:{self.grant_hash}" if self.user_id is None else f"user:{self.user_id}"


class CallReport(msgspec.Struct):
    """The report of one inference call that has ended, for the log and ``wattfare dev``.

    Attributes:
        model: the model. None if the call was refused before its model was known.
        cost: the billed amount, in nano-dollars. None if nothing was reserved, or if another
            process has settled the call.
        ended: how the call ended, as in its row of the ledger. None if there is no row.
        code: the code of the error that the client got. None if it got an answer.
    """

    app_id: str
    user_id: str | None
    grant_hash: str | None
    request_id: str
    model: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int | None = None
    ended: str | None = None
    generated: bool = False
    code: str | None = None

    def settled(self, outcome: Outcome, billed: int | None) -> None:
        """Record that the call is settled. ``billed`` is None if another process has settled it."""
        self.prompt_tokens, self.completion_tokens = (
            outcome.prompt_tokens,
            outcome.completion_tokens,
        )
        self.cost, self.ended, self.generated = billed, outcome.ended, outcome.generated


class Reservation(msgspec.Struct, frozen=True):
    """A call's reservation.

    Attributes:
        metered: the last recorded cost of the stream.
        unbounded: the cost has no bound, see :class:`Bounds`.
    """

    reserved: int
    stream: bool = False
    metered: int = 0
    unbounded: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. ``generated``: True if the model has produced something, so the call is
    billed."""

    ended: str
    generated: bool = False
    cost: int = 0
    claimed: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class MeterReading(msgspec.Struct, frozen=True):
    """The recorded cost of a stream so far. If its process dies, this cost is billed, unless the
    provider reports the true cost for the generation's id."""

    reservation_id: str
    account: Account
    cost: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    generation_id: str | None = None


class OrphanedStream(msgspec.Struct, frozen=True):
    """A stream whose process has died, and whose true cost the provider can report.

    Attributes:
        outcome: the last recorded outcome.
        funding_id: the funding whose key paid; None for the operator's key.
    """

    reservation_id: str
    account: Account
    generation_id: str
    outcome: Outcome
    funding_id: str | None = None


class LeaseRenewal(msgspec.Struct, frozen=True):
    """The result of a renewal.

    Attributes:
        held: False if the lease had expired. Other processes may then settle the calls of this one.
        revoked: the reservations whose connection or grant was revoked.
    """

    held: bool
    revoked: frozenset[str] = frozenset()
