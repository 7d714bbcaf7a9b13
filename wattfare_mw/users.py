"""Private: finds the user of a request. It calls the app's ``resolve_user``, and checks the
result."""

from __future__ import annotations

import re
import string
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from .app_functions import AppFunction
from .errors import WattfareAuthError, WattfareError
from .flow import Flow
from .types import UserId, user_id_text
from .web import Request

ResolveUser = Callable[[Any], UserId | Awaitable[UserId | None] | None]
"""Returns the app's own id of the user who makes a request (a string, an int or a UUID), or None.
It may be async."""

#: The texts of a missing value in Python and JavaScript, and of Django's anonymous user. If such a
#: text were an id, all visitors would share one budget. Upper and lower case matter: a user may be
#: called "Null".
_NO_USERS = frozenset(
    {
        *("None", "False", "nan", "AnonymousUser"),
        *("null", "undefined", "false", "NaN", "[object Object]"),
    }
)
#: The endings of such a text after a prefix of the app, as from ``f"user:{user_id}"``. Only
#: Python's texts can occur in this form. An id such as "alice-null" is valid.
_NO_USER_AT_END = ("None", "AnonymousUser")
#: Matches the ``str(…)`` of an object whose class has no ``__str__``. It may be an anonymous user.
_OBJECT = re.compile(
    r"<.*( at 0x[0-9A-Fa-f]+|Anonymous).*>|<[a-z -]*(class|function|method) .*>", re.DOTALL
)


class CallFunction(msgspec.Struct, frozen=True, gc=False):
    """A command of a flow: call one of the app's functions. If it is async, its result is
    awaited."""

    function: AppFunction
    args: tuple[Any, ...]


class AppError(Exception):
    """The app's own code returned an invalid value. This is a bug in the app, so the client gets a
    500 without details, and the log gets the reason."""


class NotSignedInError(WattfareAuthError):
    """No user of the app is signed in."""

    def __init__(self) -> None:
        super().__init__("Sign in to this app first.")


def identify(request: Request, resolve_user: AppFunction) -> Flow[str]:
    """The id of the user who makes this request.

    Raises:
        NotSignedInError: the client is not signed in.
        AppError: ``resolve_user`` returned neither a user id nor None.
    """
    return user_id_of((yield CallFunction(resolve_user, (request,))))


def user_id_of(resolved: object) -> str:
    """The user id that ``resolve_user`` returned, as text.

    Args:
        resolved: a string, an int or a UUID; None if the client is not signed in.

    Raises:
        NotSignedInError: ``resolved`` is None.
        AppError: ``resolved`` has another type, or it is the text of a missing user.
    """
    if resolved is None:
        raise NotSignedInError
    try:
        user_id = user_id_text(resolved)
    except WattfareError as error:
        if isinstance(resolved, type(None)):  # `is None` fails for a lazy object, such as Django's
            raise NotSignedInError from None
        raise AppError(
            f"resolve_user must return a user id, or None if no user is signed in. {error.message}"
            " For example: `return user.id if user else None`."
        ) from None
    # the usual case
    if user_id in _NO_USERS or (user_id[-1] in _LAST_OF_NO_USERS and _is_no_user(user_id)):
        raise AppError(
            "resolve_user must return a user id, or None if no user is signed in. It returned"
            f" {user_id[:100]!r}, which is the text of a missing user. Write `return user.id if"
            " user else None`, not `return str(user.id)`."
        )
    return user_id


_LAST_OF_NO_USERS = frozenset({*(text[-1] for text in _NO_USER_AT_END), ">", *string.whitespace})


def _is_no_user(text: str) -> bool:
    for word in _NO_USER_AT_END:
        if text.endswith(word):
            return not text.removesuffix(word)[-1].isalnum()
    return text.isspace() or _OBJECT.fullmatch(text) is not None
