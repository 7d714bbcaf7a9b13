"""``WattfareMiddleware(app, …)``: makes the kind of middleware that fits the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .base import Middleware
from .interface import interface_of
from .options import hide_secret_key


class _Factory(type):
    """Makes ``WattfareMiddleware(…)`` give a middleware of the app's interface. Both kinds count
    as instances of it."""

    if not TYPE_CHECKING:  # a type checker reads `Middleware.__init__`, which lists the options

        def __call__(
            cls, app: Any, *, interface: Literal["auto", "asgi", "wsgi"] = "auto", **options: Any
        ) -> Middleware:
            hide_secret_key(options)  # a traceback shows local variables
            if interface == "auto":
                interface = interface_of(app)
            if interface == "asgi":
                from .asgi import WattfareASGIMiddleware as Kind
            elif interface == "wsgi":
                from .wsgi import WattfareWSGIMiddleware as Kind
            else:
                raise ValueError("interface is 'auto', 'asgi' or 'wsgi'")
            return Kind(app, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Middleware)


class WattfareMiddleware(Middleware, metaclass=_Factory):
    """An existing ASGI or WSGI app, whose users pay for its AI calls.

    Args:
        app: the app. What kind it is, is seen from it.
        resolve_user: gives the app's own id of the user who makes a request (a string, an int or
            a UUID), or None if no user is signed in. Given a :class:`wattfare_mw.Request`; may be
            asynchronous.
        interface: ``"asgi"`` or ``"wsgi"``, where it cannot be seen.
        client: a :class:`Wattfare` or an :class:`AsyncWattfare`, which stays the app's to close;
            or else
        secret_key: the app's secret key; else from ``WATTFARE_SECRET_KEY``.
        base_url: the service's address; else from ``WATTFARE_BASE_URL``.
        token_path: POST: a session token for the user's browser. None switches a path off.
        inference_path: POST: a call of a model. An OpenAI client's ``base_url`` is what comes
            before its ``/chat/completions``; GET of ``/models`` there lists the models.
        status_path: GET: the user's connection; DELETE: ends it.
        client_path: GET: the module for browsers, such as ``"/wattfare.js"``, with the page that an
            approval returns to beside it; None: neither.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that
            gives it; None leaves it to the user.
        account_label: the name of the user's account at the app, which the approval shows, or a
            function of the request that gives it.
        models: the models that the app allows, ids and globs (``"openai/*"``); None: any.
        allow_grants: may a one-time grant (``X-Wattfare-Grant``) pay in a user's place?
        allowed_origins: other sites' origins whose pages may call, with the user's cookies.
        max_body_bytes: the largest body of an inference call.
        max_calls_per_user: the most inference calls at once of one user, or of one grant, in
            this process; None: no limit.
        on_usage: called after each inference call that was not refused, with the user's id
            (None for a grant), the model, its :class:`TokenUsage` and its cost in USD (None
            where not told); may be asynchronous.
        heartbeat: under ASGI, a comment is sent into a stream that was silent for so many
            seconds; None: no comments, neither ours nor the service's.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is of no use; the message says which.
    """
