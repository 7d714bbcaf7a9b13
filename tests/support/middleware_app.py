"""The middleware around a small app, for servers that run as separate processes."""

from __future__ import annotations

from support.drivers import asgi_app, wsgi_app
from wattfare_mw import Request, WattfareMiddleware


def who(request: Request) -> str | None:
    """The user that the request names."""
    return request.headers.get("x-me")


# Key and address are in the environment.
asgi = WattfareMiddleware(asgi_app, resolve_user=who)
wsgi = WattfareMiddleware(wsgi_app, resolve_user=who)
#: The same with a list of models, so that it must inspect each body.
guarded = WattfareMiddleware(asgi_app, resolve_user=who, models=["fake/*"], allow_grants=True)
