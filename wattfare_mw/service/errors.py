"""Errors that several packages of the service raise."""

from __future__ import annotations

from ..errors import WattfareError, WattfareNotConnectedError

#: How long a client should wait while the database is not available, in seconds.
DATABASE_RETRY_SECONDS = 5


#: Errors that a user can resolve on the page of their budget.
_OF_THE_BUDGET = frozenset({"not_connected", "budget_exceeded", "funding_invalid"})


def lead_to_budget(error: WattfareError, public_url: str) -> WattfareError:
    """Add the URL of the budget page to an error that the user can resolve."""
    if error.code in _OF_THE_BUDGET and error.manage_url is None:
        error.manage_url = f"{public_url}/budget"
    return error


def upstream_failed(message: str) -> WattfareError:
    """The 502 for a failure of the model's provider."""
    return WattfareError(message, code="upstream", status=502)


def not_available(
    message: str = "The service's database is not available.",
) -> WattfareError:
    """The 503 for an unavailable database. Nothing was sent to the upstream, and the client may try
    again later."""
    return WattfareError(message, code="upstream", status=503, retry_after=DATABASE_RETRY_SECONDS)


def lease_lost() -> WattfareError:
    """The 503 for a process that could not renew its lease, and so must not reserve."""
    return not_available("The service has lost its connection to the database.")


def revoked() -> WattfareError:
    """The error for a call whose connection was revoked while the call was running."""
    return WattfareNotConnectedError("The user has revoked this connection.")


def not_answered(seconds: float) -> WattfareError:
    """The error for a call whose client has left, if the upstream did not end its answer in this
    time."""
    return WattfareError(
        f"The client left, and the answer did not end within {seconds:g} seconds.",
        code="upstream",
        status=504,
    )


def shutting_down() -> WattfareError:
    """The 503 for a call that has not ended when the service stops."""
    return WattfareError(
        "The service is shutting down. Try again.", code="upstream", status=503, retry_after=1
    )
