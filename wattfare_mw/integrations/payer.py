"""The payer of an AI library's calls: the user or the grant that the app passes to the
integration."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..handles import AsyncGrant, AsyncUser, Grant, User, paid_by

Payers = User | AsyncUser | Grant | AsyncGrant
"""The handles that an integration accepts. Each handle works in sync and in async code."""


def paying(user: Payers | None) -> Any:
    """The payer of a handle. None for the user of the current request.

    Raises:
        TypeError: ``user`` is neither a user nor a grant.
    """
    if user is None:
        return paid_by(import_module("wattfare_mw").current_user)
    if not (hasattr(user, "_paid_by") and hasattr(user, "async_openai")):
        raise TypeError(
            f"user must be the result of wf.user(…) or wf.grant(…), not {type(user).__name__}"
        )
    return paid_by(user)
