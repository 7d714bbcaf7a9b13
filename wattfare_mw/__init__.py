"""Wattfare for Python. The users of a web app pay for their own AI calls.

This module has the public names. Each is imported from its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import names_from

if TYPE_CHECKING:
    from .calls import Timeout
    from .client import AsyncWattfare, Wattfare
    from .completions import Chunk, Completion, ToolCall
    from .current import current_async_user, current_user
    from .errors import (
        WattfareAuthError,
        WattfareBudgetExceededError,
        WattfareCurrentUserError,
        WattfareError,
        WattfareFundingError,
        WattfareGrantError,
        WattfareNetworkError,
        WattfareNotConnectedError,
        WattfareRateLimitError,
        is_budget_exceeded,
        is_not_connected,
        to_wattfare_error,
    )
    from .handles import (
        AsyncGrant,
        AsyncModel,
        AsyncStream,
        AsyncUser,
        Grant,
        Model,
        Stream,
        User,
    )
    from .middleware import WattfareMiddleware
    from .types import (
        ConnectionStatus,
        CreatedSession,
        GrantResult,
        Limits,
        RequestLimit,
        SessionRequest,
        TokenUsage,
        Usage,
    )
    from .web import Request, Response

__version__ = "0.1.0"

_HOMES = {
    "calls": ("Timeout",),
    "client": ("AsyncWattfare", "Wattfare"),
    "current": ("current_async_user", "current_user"),
    "completions": ("Chunk", "Completion", "ToolCall"),
    "errors": (
        "WattfareAuthError",
        "WattfareBudgetExceededError",
        "WattfareCurrentUserError",
        "WattfareError",
        "WattfareFundingError",
        "WattfareGrantError",
        "WattfareNetworkError",
        "WattfareNotConnectedError",
        "WattfareRateLimitError",
        "is_budget_exceeded",
        "is_not_connected",
        "to_wattfare_error",
    ),
    "handles": (
        "AsyncGrant",
        "AsyncModel",
        "AsyncStream",
        "AsyncUser",
        "Grant",
        "Model",
        "Stream",
        "User",
    ),
    "middleware": ("WattfareMiddleware",),
    "types": (
        "ConnectionStatus",
        "CreatedSession",
        "GrantResult",
        "Limits",
        "RequestLimit",
        "SessionRequest",
        "TokenUsage",
        "Usage",
    ),
    "web": ("Request", "Response"),
}

__all__ = [  # noqa: RUF022  # in the order in which a reader meets them
    "Wattfare",
    "AsyncWattfare",
    "WattfareMiddleware",
    "Timeout",
    "User",
    "AsyncUser",
    "current_user",
    "current_async_user",
    "Grant",
    "AsyncGrant",
    "Model",
    "AsyncModel",
    "Stream",
    "AsyncStream",
    "Completion",
    "Chunk",
    "ToolCall",
    "TokenUsage",
    "Request",
    "Response",
    "SessionRequest",
    "RequestLimit",
    "CreatedSession",
    "ConnectionStatus",
    "Limits",
    "Usage",
    "GrantResult",
    "WattfareError",
    "WattfareAuthError",
    "WattfareNotConnectedError",
    "WattfareBudgetExceededError",
    "WattfareFundingError",
    "WattfareRateLimitError",
    "WattfareGrantError",
    "WattfareNetworkError",
    "WattfareCurrentUserError",
    "to_wattfare_error",
    "is_budget_exceeded",
    "is_not_connected",
]

__getattr__, __dir__ = names_from(globals(), _HOMES)
