"""Who pays for what an AI library calls: the user or the grant that an app gives it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..handles import AsyncGrant, AsyncUser, Grant, User

Payers = User | AsyncUser | Grant | AsyncGrant
"""What an integration takes. Each is good for synchronous and for asynchronous code."""


def paying(user: Payers | None) -> Any:
    """The handle that an integration was given. None is the user who makes the current request.

    Raises:
        TypeError: it is something else.
    """
    if user is None:
        return import_module("wattfare_mw").current_user
    if not (hasattr(user, "_pays") and hasattr(user, "async_openai")):
        raise TypeError(
            "user is what wf.user(…) or wf.grant(…) of a Wattfare or an AsyncWattfare gives, not"
            f" {type(user).__name__}"
        )
    return user
