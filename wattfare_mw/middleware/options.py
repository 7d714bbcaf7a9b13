"""The options of the middleware, as adapters and the factory pass them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NotRequired, Required, TypedDict

from ..app_functions import adapt_function
from ..client import AsyncWattfare, Wattfare
from ..transport import hidden
from ..users import ResolveUser
from ..web import Request

TOKEN_PATH = "/api/wattfare-token"  # noqa: S105
INFERENCE_PATH = "/api/wattfare/chat/completions"
STATUS_PATH = "/api/wattfare/status"
#: How long a stream may be silent before a comment is sent, in seconds.
HEARTBEAT_SECONDS = 15.0


class Options(TypedDict, total=False):
    """The options of :class:`WattfareMiddleware`, for those who hand them on."""

    resolve_user: Required[ResolveUser]
    client: NotRequired[Wattfare | AsyncWattfare | None]
    secret_key: NotRequired[str | None]
    base_url: NotRequired[str | None]
    token_path: NotRequired[str | None]
    inference_path: NotRequired[str | None]
    status_path: NotRequired[str | None]
    client_path: NotRequired[str | None]
    request_limit: NotRequired[Any]
    account_label: NotRequired[Any]
    models: NotRequired[Iterable[str] | None]
    allow_grants: NotRequired[bool]
    allowed_origins: NotRequired[Iterable[str]]
    max_body_bytes: NotRequired[int]
    max_calls_per_user: NotRequired[int | None]
    on_usage: NotRequired[Callable[..., Any] | None]
    heartbeat: NotRequired[float | None]


def adapt_options(options: Options, convert: Callable[[Request], Any]) -> Options:
    """The options of an adapter, with the app's functions among them given the framework's own
    request. The secret key is hidden in the given options, too.

    Args:
        options: as the app gives them.
        convert: makes the framework's request of a :class:`wattfare_mw.Request`.
    """
    hide_secret_key(options)
    changed = options.copy()
    # What is missing stays so, and the middleware says it.
    if "resolve_user" in options:
        changed["resolve_user"] = adapt_function(options["resolve_user"], convert)
    if "request_limit" in options:
        changed["request_limit"] = adapt_function(options["request_limit"], convert)
    if "account_label" in options:
        changed["account_label"] = adapt_function(options["account_label"], convert)
    return changed


def hide_secret_key(options: Options | dict[str, Any]) -> None:
    """Hide the secret key that may be among these options, where they are."""
    if "secret_key" in options:
        options["secret_key"] = hidden(options["secret_key"])
