"""The payer of an AI library's calls: the user or the grant that the app passes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..handles import AsyncGrant, AsyncUser, Grant, User, paid_by

Payers = User | AsyncUser | Grant | AsyncGrant
"""The handles that an integration accepts. Each works in sync and in async code."""


def paying(user: Payers | None) -> Any:
    """The payer of the handle that an integration got. None is the user of the current request.

    Raises:
        TypeError: it is neither a user nor a grant.
    """
    if user is None:
        return paid_by(import_module("wattfare_mw").current_user)
    if not (hasattr(user, "_paid_by") and hasattr(user, "async_openai")):
        raise TypeError(
            f"user must be what wf.user(…) or wf.grant(…) returns, not {type(user).__name__}"
        )
    return paid_by(user)
