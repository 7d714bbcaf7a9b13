"""The money rules: what is so and what is asked in, what will be so or a refusal out.

Pure functions over immutable values; every amount is an integer of nano-dollars. Whoever stores
the values must carry each decision out in one transaction: read, rule, write.

The one that all others serve: **no reservation is granted that lifts billed + reserved above the
cap then in force, and nothing is billed beyond its reservation.**
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareGrantError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
)
from ..money import usd
from ..types import ConnectionStatus, Limits, Usage

#: What a client is told to wait, in seconds, where only calls in flight hold the budget.
IN_FLIGHT_RETRY_SECONDS = 1


class Connection(msgspec.Struct, frozen=True):
    """A user's budget at one app. ``cap=None``: unlimited. A revoked one is kept, so that its
    totals go on counting when the user comes back."""

    cap: int | None = None
    connected: bool = True


class Totals(msgspec.Struct, frozen=True):
    """What one payer has been billed, and what calls in flight hold."""

    billed: int = 0
    reserved: int = 0


class Grant(msgspec.Struct, frozen=True):
    """A one-time grant: so many calls, so much money, until then (Unix seconds)."""

    requests: int
    cap: int
    expires_at: int
    totals: Totals = Totals()


class Terms(msgspec.Struct, frozen=True):
    """Who pays. Where the operator does, ``ceiling`` bounds each user's month; None: no bound."""

    operator_pays: bool = False
    ceiling: int | None = None


class Bounds(msgspec.Struct, frozen=True):
    """What a call can cost: not less than ``least``, not more than ``most``."""

    least: int
    most: int


def month_of(moment: datetime) -> str:
    """The UTC month, ``2026-11``, in whose totals a call that is reserved now belongs."""
    return moment.astimezone(UTC).strftime("%Y-%m")


def least_of(*caps: int | None) -> int | None:
    """The strictest of some caps, of which None is no cap at all."""
    return min((cap for cap in caps if cap is not None), default=None)


def cap_to_approve(asked: int | UnsetType | None, limit: int | None, terms: Terms) -> int | None:
    """The cap that an approval sets: ``asked`` for by the user, within the ``limit`` in the
    token. The user's own money is the user's to limit; the operator's is not."""
    wanted = limit if asked is UNSET else asked
    return least_of(wanted, limit, terms.ceiling) if terms.operator_pays else wanted


def cap_in_force(connection: Connection, terms: Terms) -> int | None:
    """The cap that counts now: an operator who lowers the ceiling need not touch each cap."""
    return least_of(connection.cap, terms.ceiling) if terms.operator_pays else connection.cap


def reserve(connection: Connection | None, totals: Totals, bounds: Bounds, terms: Terms) -> Totals:
    """The totals with this call's upper bound reserved.

    Raises:
        WattfareNotConnectedError: there is no connection, or it is revoked.
        WattfareBudgetExceededError: the cap does not pay for this call.
        WattfareRateLimitError: it would, were it not for other calls in flight.
    """
    if connection is None or not connection.connected:
        raise WattfareNotConnectedError("This user has connected no budget to this app yet.")
    cap = cap_in_force(connection, terms)
    if cap is not None:
        _check_room(cap, totals, bounds)
    return Totals(totals.billed, totals.reserved + bounds.most)


def settle(totals: Totals, reserved: int, cost: int) -> tuple[Totals, int]:
    """The totals with a reservation ended, and what is billed for it: its cost, and never more
    than was reserved."""
    billed = min(max(cost, 0), reserved)
    return Totals(totals.billed + billed, totals.reserved - reserved), billed


def reserve_grant(grant: Grant | None, bounds: Bounds, now: int) -> Grant:
    """The grant with one request and this call's upper bound taken.

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
    try:
        _check_room(grant.cap, grant.totals, bounds)
    except WattfareBudgetExceededError as refusal:
        raise WattfareGrantError(refusal.message.replace("month's cap", "grant's cap")) from None
    totals = Totals(grant.totals.billed, grant.totals.reserved + bounds.most)
    return msgspec.structs.replace(grant, requests=grant.requests - 1, totals=totals)


def settle_grant(grant: Grant, reserved: int, cost: int, *, generated: bool) -> tuple[Grant, int]:
    """The grant with a reservation ended, and what is billed for it. A call that failed before
    anything was generated gives its request back."""
    totals, billed = settle(grant.totals, reserved, cost)
    requests = grant.requests if generated else grant.requests + 1
    return msgspec.structs.replace(grant, requests=requests, totals=totals), billed


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


def _check_room(cap: int, totals: Totals, bounds: Bounds) -> None:
    free = cap - totals.billed
    if bounds.least > free:
        raise WattfareBudgetExceededError("The month's cap is reached.")
    if bounds.most > free:
        # Nothing else is in the way, so that waiting would not help.
        raise WattfareBudgetExceededError(
            "The month's cap does not pay for all that this call may generate: "
            "ask for less with max_tokens."
        )
    if bounds.most > free - totals.reserved:
        raise _busy()


def _busy() -> WattfareError:
    return WattfareRateLimitError(
        "Other calls in flight hold what is left of this budget.",
        retry_after=IN_FLIGHT_RETRY_SECONDS,
    )
