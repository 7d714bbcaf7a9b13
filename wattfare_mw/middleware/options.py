"""The options of the middleware, for adapters and the factory."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NotRequired, Required, TypedDict

from ..app_functions import adapt_function
from ..client import AsyncWattfare, Wattfare
from ..sessions import AccountLabelOption, RequestLimitOption
from ..transport import hidden
from ..types import TokenUsage
from ..users import ResolveUser
from ..web import Request

TOKEN_PATH = "/api/wattfare-token"  # noqa: S105
INFERENCE_PATH = "/api/wattfare/chat/completions"
STATUS_PATH = "/api/wattfare/status"
#: The default of ``heartbeat``, in seconds.
HEARTBEAT_SECONDS = 15.0


OnUsage = Callable[[str | None, str | None, TokenUsage | None, Decimal | None], object]
"""The type of ``on_usage``. The function gets the user's id, the model, the usage and the cost in
USD. It may be async."""


class Options(TypedDict, total=False):
    """The types of :class:`WattfareMiddleware`'s options, for code that passes options on."""

    resolve_user: Required[ResolveUser]
    client: NotRequired[Wattfare | AsyncWattfare | None]
    secret_key: NotRequired[str | None]
    base_url: NotRequired[str | None]
    token_path: NotRequired[str | None]
    inference_path: NotRequired[str | None]
    status_path: NotRequired[str | None]
    client_path: NotRequired[str | None]
    request_limit: NotRequired[RequestLimitOption]
    account_label: NotRequired[AccountLabelOption]
    models: NotRequired[Iterable[str] | None]
    allow_grants: NotRequired[bool]
    allowed_origins: NotRequired[Iterable[str]]
    max_body_bytes: NotRequired[int]
    max_calls_per_user: NotRequired[int | None]
    on_usage: NotRequired[OnUsage | None]
    heartbeat: NotRequired[float | None]
    current_user: NotRequired[bool]


def check_options(options: Iterable[str]) -> None:
    """Check the names of options.

    Raises:
        TypeError: an option does not exist. The message suggests a similar name.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(unknown_option("WattfareMiddleware", name, Options.__annotations__))


def unknown_option(owner: str, name: object, known: Iterable[str]) -> str:
    """The message for an option that does not exist.

    Args:
        owner: the name of the class or setting. name: the name that the app has used. known: the
            names of all options.
    """
    names = {option.lower(): option for option in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    if near:
        advice = f"Did you mean {names[near[0]]}?"
    else:
        advice = f"The options are {', '.join(sorted(names.values()))}."
    return f"{owner} has no option {name!r}. {advice}"


def adapt_options(options: Options, convert: Callable[[Request], Any]) -> Options:
    """Wrap the functions in an adapter's options, so that they get the framework's own request.
    This also hides the secret key in the given options.

    Args:
        options: the app's options.
        convert: returns the framework's request for a :class:`wattfare_mw.Request`.
    """
    hide_secret_key(options)
    changed = options.copy()
    # If the option is missing, the middleware reports it.
    if "resolve_user" in options:
        changed["resolve_user"] = adapt_function(options["resolve_user"], convert)
    if "request_limit" in options:
        changed["request_limit"] = adapt_function(options["request_limit"], convert)
    if "account_label" in options:
        changed["account_label"] = adapt_function(options["account_label"], convert)
    return changed


def hide_secret_key(options: Options | dict[str, Any]) -> None:
    """Hide the secret key in these options, in place."""
    if "secret_key" in options:
        options["secret_key"] = hidden(options["secret_key"])
