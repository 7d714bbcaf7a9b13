"""The money rules: what is so and what is asked in, what will be so or a refusal out.

Pure functions over immutable values; every amount is an integer of nano-dollars. Whoever stores
the values must carry each decision out in one transaction: read, rule, write.

The one that all others serve: **no reservation is granted that lifts billed + reserved above the
cap then in force, and nothing is billed beyond its reservation.**
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import (
    Shortfall,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareGrantError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    invalid_request,
)
from ...money import dollars, usd
from ...types import ConnectionStatus, Limits, Usage
from ..records import (
    Bounds,
    Connection,
    GrantBudget,
    IdempotencyKey,
    PriorCall,
    Reservation,
    Terms,
    Totals,
)

#: How long an ``Idempotency-Key`` stands for the call that it came with, in seconds. The SQL
#: function of PostgreSQL has the same number.
KEY_SECONDS = 24 * 3600
#: A stream is recorded when its cost has grown by one of so many parts of its reservation. If its
#: cost has no bound, the reservation is much more than the usual cost, so the parts are smaller.
RECORDED_PARTS = 10
RECORDED_PARTS_UNBOUNDED = 1000
#: How long a client should wait if only calls in flight hold the budget, in seconds.
IN_FLIGHT_RETRY_SECONDS = 1
#: What limits a call that waits for others to end.
IN_FLIGHT = "in_flight"
#: What can limit a call. The word for each is what its message says of it.
Limit = Literal["cap", "ceiling", "grant"]
_BUDGETS: dict[Limit, str] = {
    "cap": "the month's cap",
    "ceiling": "the operator's limit for this user",
    "grant": "the grant's cap",
}


def month_of(moment: datetime) -> str:
    """The UTC month, ``2026-11``, in whose totals a call that is reserved now belongs."""
    utc = moment.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}"


def month_after(now: int) -> datetime:
    """When the UTC month after this moment begins, at which each budget begins anew.

    Args:
        now: Unix seconds.
    """
    at = datetime.fromtimestamp(now, UTC)
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)


def least_of(*caps: int | None) -> int | None:
    """The strictest of some caps, of which None is no cap at all."""
    return min((cap for cap in caps if cap is not None), default=None)


def cap_to_approve(asked: int | UnsetType | None, limit: int | None, terms: Terms) -> int | None:
    """The cap that a token's approval sets: what is ``asked`` for, never above the ``limit`` in
    the token. Whoever holds the token has no other say: more takes a new token of the app's, or a
    person on a page of the service. If the operator pays, the ceiling holds as well."""
    wanted = limit if asked is UNSET else asked
    return least_of(wanted, limit, terms.ceiling if terms.operator_pays else None)


def cap_in_force(connection: Connection, terms: Terms) -> int | None:
    """The cap that counts now: an operator who lowers the ceiling need not touch each cap."""
    return least_of(connection.cap, terms.ceiling) if terms.operator_pays else connection.cap


def reserve(
    connection: Connection | None, totals: Totals, bounds: Bounds, terms: Terms, now: int
) -> tuple[Totals, int]:
    """The totals with this call's part reserved, and how much that is: what the call may cost.

    Args:
        now: Unix seconds.

    Raises:
        WattfareNotConnectedError: there is no connection, or it is revoked.
        WattfareBudgetExceededError: the cap does not pay for the least that this call can cost.
        WattfareRateLimitError: it would, were it not for other calls in flight.
        WattfareError: ``invalid_request``; the call needs a cap, and there is none.
    """
    if connection is None or not connection.connected:
        raise WattfareNotConnectedError("This user has connected no budget to this app yet.")
    cap = cap_in_force(connection, terms)
    # If they are the same, a higher cap would not help.
    limit = "ceiling" if terms.operator_pays and cap == terms.ceiling else "cap"
    granted = _grant(cap, totals, bounds, limit, now)
    return Totals(totals.billed, totals.reserved + granted), granted


def settle(totals: Totals, reserved: int, cost: int) -> tuple[Totals, int]:
    """The totals with a reservation ended, and what is billed for it."""
    billed = billed_for(reserved, cost)
    return Totals(totals.billed + billed, totals.reserved - reserved), billed


def billed_for(reserved: int, cost: int) -> int:
    """What is billed for a call: its cost, and never more than was reserved."""
    return min(max(cost, 0), reserved)


def correction(billed: int, reserved: int, cost: int, room: int | None) -> int:
    """What is to be billed in addition, now that the true cost of a call is known. It is negative
    if too much was billed.

    Args:
        billed: what was billed for the call so far.
        reserved: what had been reserved for it. It is never billed more in all.
        cost: what it cost.
        room: what is left of the cap, apart from other calls in flight; None for no cap.
    """
    more = billed_for(reserved, cost) - billed
    return more if more <= 0 or room is None else min(more, max(room, 0))


def room_under(cap: int | None, totals: Totals) -> int | None:
    """What is left of a cap, apart from calls in flight; None for no cap."""
    return None if cap is None else cap - totals.billed - totals.reserved


def largest_grant(terms: Terms) -> int | None:
    """The largest cap of one grant; None for no limit. The operator's money has one, so that no
    grant takes all that the others share."""
    if not terms.operator_pays:
        return None
    return terms.grant_default if terms.grant_max is None else terms.grant_max


def grant_cap(asked: int | None, terms: Terms) -> int:
    """The cap of a new grant: what is ``asked`` for, or the default, within the largest cap."""
    wanted = terms.grant_default if asked is None else asked
    largest = largest_grant(terms)
    return wanted if largest is None else min(wanted, largest)


def admit_grant(held: int, grant: GrantBudget, terms: Terms) -> GrantBudget:
    """The grant to keep, with its cap within the largest one. The caps of the same app's grants
    that have not expired come to ``held``.

    Where the operator pays, anyone who has seen the app's publishable key could ask for the
    operator's money, so all of the caps count, spent or not, until they expire: in any such time
    the app's grants cost no more than the ceiling.

    Raises:
        WattfareError: ``invalid_request``, 403; the operator pays, and wants no grants.
        WattfareBudgetExceededError: the app's grants would hold more than they may.
    """
    if not terms.operator_pays:
        return grant
    if terms.grant_ceiling is None:
        raise invalid_request(
            "Where the operator pays, there are no grants without a ceiling.", 403
        )
    grant = msgspec.structs.replace(grant, cap=grant_cap(grant.cap, terms))
    if held + grant.cap > terms.grant_ceiling:
        raise WattfareBudgetExceededError("This app's grants hold all that they may for now.")
    return grant


def reserve_grant(grant: GrantBudget | None, bounds: Bounds, now: int) -> tuple[GrantBudget, int]:
    """The grant with one request and this call's part taken, and how much that is.

    Raises:
        WattfareGrantError: it is unknown, expired, used up, or does not pay for this call.
        WattfareRateLimitError: it would, were it not for other calls in flight.
    """
    if grant is None:
        raise WattfareGrantError("This grant is unknown.")
    if now >= grant.expires_at:
        raise WattfareGrantError("This grant has expired.")
    if grant.requests < 1:
        raise WattfareGrantError("This grant is used up.")
    granted = _grant(grant.cap, grant.totals, bounds, "grant", now)
    totals = Totals(grant.totals.billed, grant.totals.reserved + granted)
    return msgspec.structs.replace(grant, requests=grant.requests - 1, totals=totals), granted


def settle_grant(
    grant: GrantBudget, reserved: int, cost: int, *, generated: bool
) -> tuple[GrantBudget, int]:
    """The grant with a reservation ended, and what is billed for it. A call that failed before
    anything was generated gives its request back."""
    totals, billed = settle(grant.totals, reserved, cost)
    requests = grant.requests if generated else grant.requests + 1
    return msgspec.structs.replace(grant, requests=requests, totals=totals), billed


def check_key(key: IdempotencyKey, prior: PriorCall | None) -> None:
    """May a call with this ``Idempotency-Key`` be made?

    Raises:
        WattfareError: ``invalid_request``: 409 where it has been made, 422 where another was.
    """
    if prior is None:
        return
    if prior.body != key.body:
        raise invalid_request("This Idempotency-Key came with another request before.", 422)
    state = f"it has ended ({prior.ended})" if prior.ended else "it is in flight"
    raise invalid_request(
        f"This Idempotency-Key stands for a call that has been made: {state}.", 409
    )


def is_worth_recording(reserved: int, recorded: int, cost: int, *, unbounded: bool = False) -> bool:
    """Has the cost of a stream grown by a tenth of its reservation since it was last recorded?
    It is recorded ten times at most, because the cost counts up to the reservation."""
    growth = min(cost, reserved) - recorded
    parts = RECORDED_PARTS_UNBOUNDED if unbounded else RECORDED_PARTS
    return growth > 0 and growth * parts >= reserved


def expire(held: Reservation) -> tuple[int, str]:
    """What a call has cost whose process died, and how it ended. A stream: what was last
    recorded. A whole answer: all that is reserved, because it may have been generated. A call
    whose cost has no bound: what was recorded, because it holds more than it usually costs."""
    if held.unbounded:
        return held.metered, "lost"
    return (held.metered, "expired") if held.stream else (held.reserved, "abandoned")


def status(connection: Connection | None, totals: Totals, terms: Terms) -> ConnectionStatus:
    """What a user may see: what is only reserved does not count."""
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
    """The refusal of a call that only calls in flight are in the way of, with how long the oldest
    of them has run; None if none is left."""
    if seconds is not None:
        ran = "less than a second" if seconds < 1 else "1 second"
        ran = ran if seconds < 2 else f"{seconds:,} seconds"
        refusal.message = f"{refusal.message} The oldest has run for {ran}."
        refusal.args = (refusal.message,)
    return refusal


def _grant(cap: int | None, totals: Totals, bounds: Bounds, limit: Limit, now: int) -> int:
    """How much of what it asks for a call is given; what is free is never refused."""
    if cap is None:
        if bounds.requires_cap:
            raise invalid_request(
                "The cost of this call has no bound: it can be made on a budget with a cap only."
            )
        return bounds.most
    unspent = cap - totals.billed
    free = unspent - totals.reserved
    if bounds.least <= free:
        return min(bounds.most, free)
    resets_at = None if limit == "grant" else month_after(now)
    if bounds.least > unspent:
        # Nothing else is in the way, so that waiting would not help.
        kind = WattfareGrantError if limit == "grant" else WattfareBudgetExceededError
        message = _too_little(bounds.least, unspent, _BUDGETS[limit], resets_at)
        raise kind(message, shortfall=_shortfall(bounds.least, unspent, limit, resets_at))
    raise WattfareRateLimitError(
        "Other calls in flight hold what is left of this budget. "
        f"This call needs at least {dollars(bounds.least, up=True)}, and "
        f"{dollars(max(free, 0), up=False)} is free.",
        retry_after=IN_FLIGHT_RETRY_SECONDS,
        shortfall=_shortfall(bounds.least, free, IN_FLIGHT, resets_at),
    )


def _shortfall(needed: int, left: int, limited_by: str, resets_at: datetime | None) -> Shortfall:
    return Shortfall(
        needed_usd=usd(needed),
        remaining_usd=usd(max(left, 0)),
        resets_at=resets_at,
        limited_by=limited_by,
    )


def _too_little(needed: int, left: int, budget: str, resets_at: datetime | None) -> str:
    day = "" if resets_at is None else f"{resets_at.day} {resets_at:%B}"
    if left <= 0:
        until = f" It resets on {day}." if day else ""
        return f"{budget[0].upper()}{budget[1:]} is reached.{until}"
    return (
        f"This call needs at least {dollars(needed, up=True)}, and {dollars(left, up=False)} of "
        f"{budget} is left{f' until {day}' if day else ''}."
    )
