"""The refusals that every part of the service has: what was asked for cannot be, or not now."""

from __future__ import annotations

from ..errors import WattfareError

#: What a client is told to wait where the database is not there, in seconds.
DATABASE_RETRY_SECONDS = 5


def not_available(
    message: str = "The service's database is not available.",
) -> WattfareError:
    """503: nothing has been forwarded, and waiting helps."""
    return WattfareError(message, code="upstream", status=503, retry_after=DATABASE_RETRY_SECONDS)
