"""Wattfare for Django: the users of a Django project pay for its AI calls.

The middleware answers the paths inside Django's own handler. So the session, ``request.user`` and
the database connections are those of any other request, under WSGI and under ASGI.
"""

from .middleware import WattfareMiddleware, WattfareRequest
from .views import session_view

__all__ = ["WattfareMiddleware", "WattfareRequest", "session_view"]
