"""The one refusal that every part of the service has: what was asked for cannot be."""

from __future__ import annotations

from ..errors import WattfareError


def invalid(message: str, status: int = 400) -> WattfareError:
    """``invalid_request``, with what is wrong."""
    return WattfareError(message, code="invalid_request", status=status)
