"""The Django project for servers that run as separate processes. Its users have UUIDs.

Environment variables name the database, the key and the service's address.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections

from support import django_project
from wattfare_mw import Request, WattfareMiddleware

django_project.configure(
    os.environ["DATABASE"],
    conn_max_age=None if os.environ["CONN_MAX_AGE"] == "None" else int(os.environ["CONN_MAX_AGE"]),
    AUTH_USER_MODEL="django_members.Member",
    INSTALLED_APPS=[*django_project.INSTALLED_APPS, "support.django_members"],
)
# In a thread: older versions of uvicorn import this module on the event loop.
with ThreadPoolExecutor(1) as thread:
    thread.submit(django_project.make_tables).result()
    thread.submit(connections.close_all).result()


def application(interface: str) -> Any:
    """The project as an ASGI or a WSGI app."""
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    return get_asgi_application() if interface == "asgi" else get_wsgi_application()


def any_user(_request: Request) -> str:
    """For the middleware that knows nothing about Django."""
    from django.contrib.auth import get_user_model

    return f"one of {get_user_model().objects.count()}"


asgi = application("asgi")
wsgi = application("wsgi")
neutral_asgi = WattfareMiddleware(asgi, resolve_user=any_user)
neutral_wsgi = WattfareMiddleware(wsgi, resolve_user=any_user)
