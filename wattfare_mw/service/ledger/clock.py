"""Moments as the ledger stores them: Unix seconds or milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The clock of the service, in UTC."""
    return datetime.now(UTC)


def seconds(moment: datetime) -> int:
    """Unix seconds."""
    return int(moment.timestamp())


def milliseconds(moment: datetime, later: float = 0) -> int:
    """Unix milliseconds, so many seconds after this moment."""
    return int(moment.timestamp() * 1000) + round(later * 1000)
