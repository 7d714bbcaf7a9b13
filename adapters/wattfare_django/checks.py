"""Checks for ``manage.py check``: the setting ``WATTFARE``, and the order of the middleware."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from wattfare_mw.framework import WattfareError

from .conf import OUR_MIDDLEWARE, place_of, read_setting

_OURS = "wattfare_django.WattfareMiddleware"
#: The middleware for ASGI and WSGI apps, which Django cannot load.
_PLAIN = "wattfare_mw.WattfareMiddleware"
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
_GZIP = "django.middleware.gzip.GZipMiddleware"


def check_setting(**_options: Any) -> list[Any]:
    """Check that there is a secret key and that the options are valid."""
    from .middleware import SyncDriver

    try:
        SyncDriver.from_setting().close()
    except ImproperlyConfigured as error:
        cause = error.__cause__
        if isinstance(cause, WattfareError) and cause.code == "auth":
            return [
                checks.Error(
                    f"Wattfare: {cause}",
                    hint="Set the environment variable WATTFARE_SECRET_KEY, or"
                    ' WATTFARE["SECRET_KEY"]. `wattfare dev` prints a test key. A command that'
                    " makes no calls, such as `migrate` or `test`, works with any key that begins"
                    " with 'sk_test_'.",
                    id="wattfare.E001",
                )
            ]
        return [
            checks.Error(
                str(error),
                hint="Correct the setting WATTFARE. docs/middleware.md lists its options.",
                id="wattfare.E002",
            )
        ]
    return []


def check_middleware(**_options: Any) -> list[Any]:
    """Check that the middleware is installed, and that it comes after the middleware that sets
    ``request.user``."""
    ours = place_of(OUR_MIDDLEWARE)
    if ours is None:
        return [
            checks.Warning(
                "WattfareMiddleware is not in MIDDLEWARE, so Wattfare's paths do not exist.",
                hint=f"Replace {_PLAIN!r} with {_OURS!r}."
                if _PLAIN in settings.MIDDLEWARE
                else f"Add {_OURS!r} at the end of MIDDLEWARE.",
                id="wattfare.W001",
            )
        ]
    found: list[Any] = []
    authentication = place_of(_AUTHENTICATION)
    session = place_of(_SESSION)
    by_default = not _has_resolve_user()
    if authentication is None and by_default:
        found.append(
            checks.Warning(
                "The middleware that sets request.user is not in MIDDLEWARE, but Wattfare"
                " reads the payer from request.user.",
                hint=f"Add {_AUTHENTICATION!r} before {_OURS!r}, or set"
                ' WATTFARE["RESOLVE_USER"]. If other middleware sets request.user, add'
                ' "wattfare.W002" to SILENCED_SYSTEM_CHECKS.',
                id="wattfare.W002",
            )
        )
    for place, name in ((session, _SESSION), (authentication, _AUTHENTICATION)):
        if place is not None and place > ours:
            kind = checks.Error if by_default else checks.Warning
            found.append(
                kind(
                    f"WattfareMiddleware is before {name.rpartition('.')[2]} in MIDDLEWARE, so"
                    " its requests have no session and no user.",
                    hint=f"Move {_OURS!r} after {name!r}.",
                    id="wattfare.E003" if kind is checks.Error else "wattfare.W003",
                )
            )
    if place_of(_GZIP) is not None:
        found.append(
            checks.Warning(
                "GZipMiddleware buffers streams. Wattfare's own paths are not affected, but a"
                " stream from your own view arrives all at once.",
                hint="Compress in the web server instead. Or call"
                ' `request.META.pop("HTTP_ACCEPT_ENCODING", None)` in each view that streams, and'
                ' add "wattfare.W004" to SILENCED_SYSTEM_CHECKS.',
                id="wattfare.W004",
            )
        )
    return found


def _has_resolve_user() -> bool:
    try:
        return "resolve_user" in read_setting()
    except ImproperlyConfigured:  # check_setting reports it
        return False
