"""Private: finds out who makes a request: calls the app's ``resolve_user``, and checks its
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

#: The texts of a missing value in Python and JavaScript, and of a user who is not signed in, in
#: Django. As an id, such a text would make all visitors one user. The case matters: a user may be
#: called "Null".
_NO_USERS = frozenset(
    {
        *("None", "False", "nan", "AnonymousUser"),
        *("null", "undefined", "false", "NaN", "[object Object]"),
    }
)
#: The same after a prefix of the app, such as ``f"user:{user_id}"``. Only the forms of Python occur
#: here. An id such as "alice-null" is valid.
_NO_USER_AT_END = ("None", "AnonymousUser")
#: The result of ``str(…)`` for an object without its own text, which may be an anonymous user.
_OBJECT = re.compile(
    r"<.*( at 0x[0-9A-Fa-f]+|Anonymous).*>|<[a-z -]*(class|function|method) .*>", re.DOTALL
)


class CallFunction(msgspec.Struct, frozen=True, gc=False):
    """A command of a flow: call one of the app's functions. The result is awaited if needed."""

    function: AppFunction
    args: tuple[Any, ...]


class AppError(Exception):
    """The app's own code returned an invalid value. This is a bug in the app, so the client gets
    a plain 500 and the log gets the reason."""


class NotSignedInError(WattfareAuthError):
    """The request comes from a client that is not signed in to this app."""

    def __init__(self) -> None:
        super().__init__(
            "Sign in first: this request does not come from a signed-in user of this app."
        )


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
        NotSignedInError: it is None.
        AppError: it has another type, or it is the text of a missing user.
    """
    if resolved is None:
        raise NotSignedInError
    try:
        user_id = user_id_text(resolved)
    except WattfareError as error:
        if isinstance(resolved, type(None)):  # a lazy object, such as Django's
            raise NotSignedInError from None
        raise AppError(
            f"resolve_user must return a user id or None. {error.message} If no user is signed in,"
            " return None. So write `return user.id if user else None`."
        ) from None
    # the usual case
    if user_id in _NO_USERS or (user_id[-1] in _LAST_OF_NO_USERS and _is_no_user(user_id)):
        raise AppError(
            f"resolve_user must return a user id or None. It returned {user_id[:100]!r}, which is"
            " the text of a missing user. If no user is signed in, return None. Otherwise, return"
            " the id itself: a str, an int or a UUID. So write"
            " `return user.id if user else None`, and not `return str(user.id)`."
        )
    return user_id


_LAST_OF_NO_USERS = frozenset({*(text[-1] for text in _NO_USER_AT_END), ">", *string.whitespace})


def _is_no_user(text: str) -> bool:
    for word in _NO_USER_AT_END:
        if text.endswith(word):
            return not text.removesuffix(word)[-1].isalnum()
    return text.isspace() or _OBJECT.fullmatch(text) is not None
