"""Finds the user of a request. By default, it is the signed-in user."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404

from wattfare_mw.framework import Request

#: The exceptions of the project's functions that Django converts to responses, as in a view.
DJANGO_ANSWERS = (BadRequest, Http404, PermissionDenied, SuspiciousOperation)


def signed_in_user(request: Any) -> Any:
    """The primary key of ``request.user``; None if no user is signed in."""
    try:
        user = request.user
    except AttributeError:
        raise RuntimeError(
            "This request has no user. Put wattfare_django.WattfareMiddleware after"
            " django.contrib.auth.middleware.AuthenticationMiddleware in MIDDLEWARE, or set"
            ' WATTFARE["RESOLVE_USER"].'
        ) from None
    return _key_of(user)


async def asigned_in_user(request: Any) -> Any:
    """:func:`signed_in_user`, on an event loop."""
    auser = getattr(request, "auser", None)
    if auser is None or _is_from_django(auser):
        # REST framework, a middleware for tokens or `alogout()` may have set only `request.user`.
        # Django's `auser()` would then still return the user of the session.
        return await sync_to_async(signed_in_user)(request)
    return _key_of(await auser())


def _is_from_django(auser: Any) -> bool:
    function = auser.func if isinstance(auser, partial) else None
    return getattr(function, "__module__", None) == "django.contrib.auth.middleware"


def _key_of(user: Any) -> Any:
    return user.pk if getattr(user, "is_authenticated", False) else None


def in_djangos_thread(function: Any) -> Any:
    """Make a function of the project async. A synchronous function runs in the thread of Django's
    synchronous views, because Django closes database connections only there."""
    if not callable(function) or is_async(function) or is_async(type(function).__call__):
        return function
    return sync_to_async(function)


def is_async(function: Any) -> bool:
    """True if this is a coroutine function, or is marked as one."""
    # Python 3.11 has no `inspect.markcoroutinefunction`, so asgiref's marker is used.
    return iscoroutinefunction(function)  # pyright: ignore[reportDeprecated]


def django_request(request: Request) -> Any:
    """The Django request of a :class:`wattfare_mw.Request`."""
    return request.raw
