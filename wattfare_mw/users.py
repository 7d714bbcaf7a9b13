"""Who makes a request: the app's own ``resolve_user`` is called, and its result is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .app_functions import AppFunction
from .errors import WattfareAuthError, WattfareError
from .flow import Flow
from .types import check_user_id
from .web import Request

ResolveUser = Callable[[Any], Any]
"""Returns the app's own id of the user who makes a request, or None. It may be async."""


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
    try:
        return check_user_id(user_id)
    except WattfareError as error:
        raise AppError(f"resolve_user must give a user id or None. {error.message}") from None
