"""Who makes a request: the app's own ``resolve_user`` is called, and its result is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec

from .app_functions import AppFunction
from .errors import WattfareAuthError, WattfareError
from .flow import Flow
from .types import check_user_id
from .web import Request

ResolveUser = Callable[[Any], Any]
"""Returns the app's own id of the user who makes a request (a string, an int or a UUID), or None.
It may be async."""

#: What text the lack of a user becomes, in lower case: ``str(None)``, JavaScript's ``String(…)``,
#: and the rest. As an id, it would make one user of all visitors.
_NO_USERS = frozenset(
    {
        *("", "none", "null", "nil", "undefined", "nan", "false", "true"),
        *("anonymoususer", "[object object]", "{}", "[]", "()"),
    }
)
#: The same behind a prefix of the app's, such as ``f"user:{user_id}"``.
_NO_USER_AT_END = ("None", "null", "undefined", "AnonymousUser")
#: What ``str(…)`` makes of an object that has no text of its own, which may be an anonymous user.
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
        super().__init__("Sign in first: this request comes from no user of this app.")


def identify(request: Request, resolve_user: AppFunction) -> Flow[str]:
    """The id of the user who makes this request.

    Raises:
        NotSignedInError: the client is not signed in.
        AppError: ``resolve_user`` returned neither a user id nor None.
    """
    user_id = yield CallFunction(resolve_user, (request,))
    if user_id is None:
        raise NotSignedInError
    return user_id_of(user_id)


def user_id_of(resolved: object) -> str:
    """The user id that ``resolve_user`` returned, as text.

    Args:
        resolved: a string, an int or a UUID.

    Raises:
        AppError: it is none of these, or the text that the lack of a user becomes.
    """
    if type(resolved) is not str and (
        isinstance(resolved, (int, UUID)) and not isinstance(resolved, bool)
    ):
        try:
            resolved = str(resolved)
        except ValueError:  # an int of thousands of digits
            raise AppError("resolve_user must give a user id. It gave a huge int.") from None
    if isinstance(resolved, str) and _is_no_user(resolved):
        raise AppError(
            f"resolve_user must give a user id or None. It gave {resolved[:100]!r}, which is what"
            " str() makes of a user who is not there. If no user is signed in, return None. Else"
            " return the id as it is: a str, an int or a UUID. So write"
            " `return user.id if user else None`, and not `return str(user.id)`."
        )
    try:
        return check_user_id(resolved)
    except WattfareError as error:
        raise AppError(
            "resolve_user must give a user id or None. A user id is a str, an int or a UUID."
            f" {error.message}"
        ) from None


def _is_no_user(text: str) -> bool:
    if text.strip().lower() in _NO_USERS:
        return True
    if text.endswith(_NO_USER_AT_END):
        before = next(text.removesuffix(word) for word in _NO_USER_AT_END if text.endswith(word))
        return not before[-1].isalnum()
    return text[0] == "<" and _OBJECT.fullmatch(text) is not None
