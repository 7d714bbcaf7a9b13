"""Wattfare for Django: the users of a Django project pay for its AI calls.

The middleware answers its paths inside Django's own handler. So the session, ``request.user`` and
the database connections work as in any other request, under WSGI and under ASGI.
"""

try:
    from .middleware import WattfareMiddleware, WattfareRequest
except ModuleNotFoundError as error:
    if error.name != "django":
        raise
    raise ModuleNotFoundError(
        "Django is not installed. Type: pip install 'wattfare-mw[django]'", name="django"
    ) from None
from .views import session_view

__all__ = ["WattfareMiddleware", "WattfareRequest", "session_view"]
