"""The money rules, as pure functions: current state and a request in; new state or an error out.

Values are immutable, and each amount is an integer of nano-dollars. A store must read, apply a rule
and write in one transaction.

The main rule: **a reservation never raises the sum of bills and reservations above the current cap
or, if the operator pays, above a ceiling. A bill never exceeds its reservation.**
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import (
    Shortfall,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    invalid_request,
)
from ...money import dollars, usd
from ...types import ConnectionStatus, Limits, Usage
from ..records import (
    USERS_PAY,
    Bounds,
    Connection,
    GrantBudget,
    IdempotencyKey,
    OperatorTotals,
    PriorCall,
    Reservation,
    Terms,
    Totals,
)

#: How long an ``Idempotency-Key`` identifies its call, in seconds. The SQL function of PostgreSQL
#: has the same number.
KEY_SECONDS = 24 * 3600
#: The cost of a stream is recorded each time the cost has grown by one tenth of the reservation. If
#: the cost has no bound, the reservation is much more than the usual cost, so the cost is recorded
#: each time it has grown by one thousandth.
RECORDED_PARTS = 10
RECORDED_PARTS_UNBOUNDED = 1000
#: How long a client should wait if the call would fit after other calls end, in seconds.
IN_FLIGHT_RETRY_SECONDS = 1
#: The ``limited_by`` of an error if the call would fit after other calls end.
IN_FLIGHT = "in_flight"
#: The other values of ``limited_by``.
Limit = Literal["cap", "ceiling", "grant"]
_OF_CAP = "the monthly cap"
_OF_USER = "the operator's limit for this user"
_OF_GRANT = "the grant's cap"
_OF_APP = "the operator's limit for this app"
_OF_ALL = "the operator's limit for all apps"


#: The operator's totals before any call counts towards a ceiling.
NOTHING_COUNTED = OperatorTotals()


def month_of(moment: datetime) -> str:
    """The UTC month, such as ``2026-11``. A call belongs to the month in which it was reserved."""
    utc = moment.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}"


def month_after(now: int) -> datetime:
    """The start of the next UTC month, when each budget resets.

    Args:
        now: Unix seconds.
    """
    at = datetime.fromtimestamp(now, UTC)
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)


def least_of(*caps: int | None) -> int | None:
    """The lowest of these caps. None means no cap."""
    return min((cap for cap in caps if cap is not None), default=None)


def cap_to_approve(asked: int | UnsetType | None, limit: int | None, terms: Terms) -> int | None:
    """The cap that a request with a session token sets. It is the amount ``asked`` for, but at most
    the ``limit`` in the token and, if the operator pays, the ceiling. For a higher cap, the app
    must create a new token, or a person must approve it on a page of the service."""
    wanted = limit if asked is UNSET else asked
    return least_of(wanted, limit, terms.ceiling if terms.operator_pays else None)


def operator_pays(funding_id: str | None, terms: Terms) -> bool:
    """True if the operator's own money pays for a call with this funding."""
    return terms.operator_pays and funding_id is None


def is_funding_valid(funding_id: str | None, state: str | None) -> bool:
    """True if this funding can pay.

    Args:
        funding_id: None for the operator's key or the built-in model. Then the result is True.
        state: the state in the row of the funding; None without a row.
    """
    return funding_id is None or state == "valid"


def counts_for_operator(funding_id: str | None, terms: Terms) -> bool:
    """True if a call with this funding counts towards the ceilings of its app and of all apps. It
    counts if the operator pays and one of these ceilings is set. A call counts in both totals or in
    neither."""
    has_ceiling = terms.app_ceiling is not None or terms.total_ceiling is not None
    return has_ceiling and operator_pays(funding_id, terms)


def cap_in_force(connection: Connection, terms: Terms) -> int | None:
    """The current cap: the connection's own cap, or what is left of the operator's ceiling if that
    is lower. The ceiling does not apply to a payer's own funding."""
    return least_of(connection.cap, _ceiling_left(connection, terms))


def _ceiling_left(connection: Connection, terms: Terms) -> int | None:
    """The remaining amount of the operator's money that this payer may spend; None for no limit.
    The ceiling is per user, so the spending of the user's other payers counts, too. Otherwise, a
    user could create a new passkey, and so a new payer, to start again at zero.
    """
    if terms.ceiling is None or not operator_pays(connection.funding_id, terms):
        return None
    return max(terms.ceiling - connection.others, 0)


def reserve(
    connection: Connection | None,
    totals: Totals,
    bounds: Bounds,
    terms: Terms,
    now: int,
    operator: OperatorTotals = NOTHING_COUNTED,
) -> tuple[Totals, int]:
    """Reserve what a call may cost. Returns the new totals, and the reserved amount.

    Args:
        totals: the totals of the connection's payer.
        now: Unix seconds.
        operator: the totals that count towards the operator's ceilings.

    Raises:
        WattfareNotConnectedError: there is no connection, or it was revoked.
        WattfareFundingError: the upstream refused the payer's funding.
        WattfareBudgetExceededError: the cap or a ceiling of the operator is too low for the call.
        WattfareRateLimitError: the reservations of other calls use the rest of the budget.
        WattfareError: ``invalid_request``; the call needs a budget with a cap, but the budget has
            no cap.
    """
    if connection is None or not connection.connected:
        raise WattfareNotConnectedError("Connect an AI budget to use this feature.")
    if not connection.funding_valid:
        raise refused_funding()
    cap = cap_in_force(connection, terms)
    # If the ceiling is the current cap, raising the connection's cap would not help.
    at_ceiling = cap is not None and cap == _ceiling_left(connection, terms)
    own = (
        _Budget(cap, totals, "ceiling", _OF_USER)
        if at_ceiling
        else _Budget(cap, totals, "cap", _OF_CAP)
    )
    shared = _shared_budgets(connection.funding_id, operator, terms)
    granted = _grant((own, *shared), bounds, now)
    return Totals(totals.billed, totals.reserved + granted), granted


def settle(totals: Totals, reserved: int, cost: int) -> tuple[Totals, int]:
    """End a reservation. Returns the new totals, and the billed amount."""
    billed = billed_for(reserved, cost)
    return Totals(totals.billed + billed, totals.reserved - reserved), billed


def billed_for(reserved: int, cost: int) -> int:
    """The bill for a call: its cost, but at most the reservation."""
    return min(max(cost, 0), reserved)


def correction(billed: int, reserved: int, cost: int, room: int | None) -> int:
    """The additional amount to bill when the true cost of a call becomes known. It is negative if
    the bill was too high.

    Args:
        billed: the amount billed for the call so far.
        reserved: the reservation of the call. The sum of its bills never exceeds the reservation.
        cost: its true cost.
        room: the rest of the cap after all bills and reservations; None for no cap.
    """
    more = billed_for(reserved, cost) - billed
    return more if more <= 0 or room is None else min(more, max(room, 0))


def room_under(cap: int | None, totals: Totals) -> int | None:
    """The rest of a cap after all bills and reservations; None for no cap."""
    return None if cap is None else cap - totals.billed - totals.reserved


def largest_grant(terms: Terms) -> int | None:
    """The largest cap of one grant; None if there is no limit. Grants that the operator pays for
    have a limit, so that one grant cannot use up the money for all."""
    if not terms.operator_pays:
        return None
    return terms.grant_default if terms.grant_max is None else terms.grant_max


def grant_cap(asked: int | None, terms: Terms) -> int:
    """The cap of a new grant: the amount ``asked`` for, or the default, but at most the largest
    cap."""
    wanted = terms.grant_default if asked is None else asked
    largest = largest_grant(terms)
    return wanted if largest is None else min(wanted, largest)


def allows_grants(funding_id: str | None, terms: Terms) -> bool:
    """True if this funding allows grants. If the operator pays, grants need a ceiling."""
    return terms.grant_ceiling is not None or not operator_pays(funding_id, terms)


def refused_grant() -> WattfareError:
    """The error for a grant that the operator would pay for without a ceiling."""
    return invalid_request(
        "This service does not allow grants, because its operator has not set a ceiling for them.",
        403,
    )


def admit_grant(held: int, grant: GrantBudget, terms: Terms) -> GrantBudget:
    """The grant to store. Its cap is lowered to the largest allowed cap if necessary. ``held`` is
    the sum of the caps of the app's grants that have not expired.

    If the operator pays, anyone with the app's publishable key can ask for a grant. So the whole
    cap of a grant counts until the grant expires, even if it is not spent. At any time, the grants
    of an app cost at most the ceiling.

    Raises:
        WattfareError: ``invalid_request``, 403; the operator pays and does not allow grants.
        WattfareBudgetExceededError: the app's grants would exceed the ceiling.
    """
    if not allows_grants(grant.funding_id, terms):
        raise refused_grant()
    if terms.grant_ceiling is None or not operator_pays(grant.funding_id, terms):
        return grant
    grant = msgspec.structs.replace(grant, cap=grant_cap(grant.cap, terms))
    if held + grant.cap > terms.grant_ceiling:
        raise WattfareBudgetExceededError(
            "This app's grants have reached the operator's ceiling. Try again when some grants"
            " have expired."
        )
    return grant


def reserve_grant(
    grant: GrantBudget | None,
    bounds: Bounds,
    now: int,
    terms: Terms = USERS_PAY,
    operator: OperatorTotals = NOTHING_COUNTED,
) -> tuple[GrantBudget, int]:
    """Reserve what a call of a grant may cost. Returns the new grant, and the reserved amount.

    Args:
        now: Unix seconds.
        operator: the totals that count towards the operator's ceilings.

    Raises:
        WattfareGrantError: the grant is unknown, expired or used up, or is too small for this call.
        WattfareFundingError: the upstream refused the payer's funding.
        WattfareBudgetExceededError: a ceiling of the operator is too low for the call.
        WattfareRateLimitError: the reservations of other calls use the rest of the budget.
    """
    if grant is None:
        raise WattfareGrantError("This grant is unknown.")
    if now >= grant.expires_at:
        raise WattfareGrantError("This grant has expired.")
    if grant.requests < 1:
        raise WattfareGrantError("This grant is used up.")
    if not grant.funding_valid:
        raise refused_funding()
    own = _Budget(grant.cap, grant.totals, "grant", _OF_GRANT)
    granted = _grant((own, *_shared_budgets(grant.funding_id, operator, terms)), bounds, now)
    totals = Totals(grant.totals.billed, grant.totals.reserved + granted)
    return msgspec.structs.replace(grant, requests=grant.requests - 1, totals=totals), granted


def settle_grant(
    grant: GrantBudget, reserved: int, cost: int, *, generated: bool
) -> tuple[GrantBudget, int]:
    """End a reservation of a grant. Returns the new grant, and the billed amount. A call that
    failed before the model generated anything does not count as a request."""
    totals, billed = settle(grant.totals, reserved, cost)
    requests = grant.requests if generated else grant.requests + 1
    return msgspec.structs.replace(grant, requests=requests, totals=totals), billed


def check_key(key: IdempotencyKey, prior: PriorCall | None) -> None:
    """Refuse a call whose ``Idempotency-Key`` was used before.

    Raises:
        WattfareError: ``invalid_request``; 409 if it was used for the same call, 422 if it was used
            for another call.
    """
    if prior is None:
        return
    if prior.body != key.body:
        raise invalid_request("This Idempotency-Key was used for another request.", 422)
    state = f"it has ended ({prior.ended})" if prior.ended else "it is in flight"
    raise invalid_request(f"The call with this Idempotency-Key was already made: {state}.", 409)


def is_worth_recording(reserved: int, recorded: int, cost: int, *, unbounded: bool = False) -> bool:
    """True if the cost of a stream has grown by a tenth of its reservation since it was last
    recorded, or by a thousandth if the call is ``unbounded``. Cost above the reservation does not
    count, so a stream is recorded at most ten or a thousand times."""
    growth = min(cost, reserved) - recorded
    parts = RECORDED_PARTS_UNBOUNDED if unbounded else RECORDED_PARTS
    return growth > 0 and growth * parts >= reserved


def expire(held: Reservation) -> tuple[int, str]:
    """The cost of a call whose process died, and how the call ended. For a stream, it is the last
    recorded cost. For a call without a stream, it is the whole reservation, because the answer may
    have been generated. For a call without a bound, it is always the last recorded cost, because
    the reservation is usually much more than the real cost."""
    if held.unbounded:
        return held.metered, "lost"
    return (held.metered, "expired") if held.stream else (held.reserved, "abandoned")


def status(connection: Connection | None, totals: Totals, terms: Terms) -> ConnectionStatus:
    """The status that the user sees. Reservations are not included."""
    used = Usage(monthly_usd=usd(totals.billed))
    if connection is None or not connection.connected:
        return ConnectionStatus(connected=False, usage=used, remaining_usd=usd(0))
    cap = cap_in_force(connection, terms)
    if cap is None:
        return ConnectionStatus(connected=True, limits=Limits(), usage=used)
    return ConnectionStatus(
        connected=True,
        limits=Limits(monthly_usd=usd(cap)),
        usage=used,
        remaining_usd=usd(max(cap - totals.billed, 0)),
    )


def in_flight_for(refusal: WattfareError, seconds: int | None) -> WattfareError:
    """Add the age of the oldest call in flight to the message of this error.

    Args:
        seconds: the age; None if no call is in flight.
    """
    if seconds is not None:
        ran = "less than a second" if seconds < 1 else "1 second"
        ran = ran if seconds < 2 else f"{seconds:,} seconds"
        refusal.message = f"{refusal.message} The oldest has run for {ran}."
        refusal.args = (refusal.message,)
    return refusal


class _Budget(NamedTuple):
    """Something that limits a call."""

    cap: int | None
    totals: Totals
    limit: Limit
    name: str

    @property
    def is_shared(self) -> bool:
        """True if other users also spend from this budget. Errors do not show its remaining amount,
        because this would show their spending."""
        return self.name in (_OF_APP, _OF_ALL)

    @property
    def unspent(self) -> int:
        assert self.cap is not None
        return self.cap - self.totals.billed

    @property
    def free(self) -> int:
        return self.unspent - self.totals.reserved


def _shared_budgets(
    funding_id: str | None, operator: OperatorTotals, terms: Terms
) -> tuple[_Budget, ...]:
    if not counts_for_operator(funding_id, terms):
        return ()
    return (
        _Budget(terms.app_ceiling, operator.app, "ceiling", _OF_APP),
        _Budget(terms.total_ceiling, operator.all_apps, "ceiling", _OF_ALL),
    )


def refused_funding() -> WattfareError:
    """The error for a call whose funding is not valid."""
    return WattfareFundingError(
        "The model's provider has refused the key that pays for this budget. The payer must"
        " connect a new key."
    )


def _grant(budgets: tuple[_Budget, ...], bounds: Bounds, now: int) -> int:
    """The amount that a call may reserve, within all of these budgets."""
    free: int | None = None
    for cap, totals, _, _ in budgets:  # a plain loop, because every call runs it
        if cap is not None:
            left = cap - totals.billed - totals.reserved
            free = left if free is None else min(free, left)
    if free is None:
        if bounds.requires_cap:
            names = "".join(f" `{name}`" for name in bounds.because[:1])
            raise invalid_request(
                f"The cost of{names or ' this call'} has no bound, so this call needs a budget "
                "with a cap. The user can set a cap, or the operator can set --user-ceiling-usd."
            )
        return bounds.most
    if bounds.least > free:
        raise _refusal([each for each in budgets if each.cap is not None], bounds.least, now)
    return min(bounds.most, free)


def _refusal(limits: list[_Budget], least: int, now: int) -> WattfareError:
    # If two budgets have the same amount left, the error names the first one: the user's own.
    spent = min(limits, key=lambda budget: budget.unspent)
    if least > spent.unspent:
        # Even without calls in flight, the call would not fit, so waiting would not help.
        return _exceeded(spent, least, now)
    return _in_flight(min(limits, key=lambda budget: budget.free), least, now)


def _exceeded(budget: _Budget, least: int, now: int) -> WattfareError:
    kind = WattfareGrantError if budget.limit == "grant" else WattfareBudgetExceededError
    resets_at = None if budget.limit == "grant" else month_after(now)
    left = None if budget.is_shared else budget.unspent
    return kind(
        _too_little(least, budget, resets_at),
        shortfall=_shortfall(least, left, budget.limit, resets_at),
    )


def _in_flight(budget: _Budget, least: int, now: int) -> WattfareError:
    resets_at = None if budget.limit == "grant" else month_after(now)
    needs = f"This call needs at least {dollars(least, up=True)}"
    if budget.is_shared:
        held, needs, left = budget.name, f"{needs}.", None
    else:
        held, left = "this budget", budget.free
        needs = f"{needs}, and {dollars(max(left, 0), up=False)} is free."
    return WattfareRateLimitError(
        f"Calls in flight have reserved the rest of {held}. {needs}",
        retry_after=IN_FLIGHT_RETRY_SECONDS,
        shortfall=_shortfall(least, left, IN_FLIGHT, resets_at),
    )


def _shortfall(
    needed: int, left: int | None, limited_by: str, resets_at: datetime | None
) -> Shortfall:
    return Shortfall(
        needed_usd=usd(needed),
        remaining_usd=None if left is None else usd(max(left, 0)),
        resets_at=resets_at,
        limited_by=limited_by,
    )


def _too_little(needed: int, budget: _Budget, resets_at: datetime | None) -> str:
    day = "" if resets_at is None else f"{resets_at.day} {resets_at:%B}"
    name, left = budget.name, budget.unspent
    again = f" It resets on {day}." if day else ""
    if left <= 0:
        return f"{name[0].upper()}{name[1:]} is reached.{again}"
    if budget.is_shared:
        return f"The rest of {name} is too small for this call.{again}"
    until = f" until {day}" if day else ""
    return (
        f"This call needs at least {dollars(needed, up=True)}, and {dollars(left, up=False)} of "
        f"{name} is left{until}."
    )
