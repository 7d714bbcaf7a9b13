"""``WattfareMiddleware(app, …)``: creates the ASGI or the WSGI middleware for an app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from .base import Middleware
from .interface import interface_of
from .options import Options, hide_secret_key

if TYPE_CHECKING:
    from .asgi import WattfareASGIMiddleware
    from .wsgi import WattfareWSGIMiddleware

    class _Base(Middleware):
        """Leaves the arguments to `WattfareMiddleware.__new__`."""

        def __init__(self, *_args: Any, **_options: Any) -> None: ...
else:
    _Base = Middleware

# These types only say how an app is called, because frameworks type their scopes differently. An
# ASGI 2 app is called twice.
AnyASGIApp = (
    Callable[[Any, Any, Any], Awaitable[object]]
    | Callable[[Any], Callable[[Any, Any], Awaitable[object]]]
)
AnyWSGIApp = Callable[[Any, Any], object]


class _Factory(type):
    """Makes ``WattfareMiddleware(…)`` return a middleware of the app's interface. Both kinds are
    instances of it."""

    if not TYPE_CHECKING:  # a type checker reads `WattfareMiddleware.__new__`

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
                raise ValueError("interface must be 'auto', 'asgi' or 'wsgi'")
            return Kind(app, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Middleware)


class WattfareMiddleware(_Base, metaclass=_Factory):
    """Wraps an ASGI or WSGI app, so that its users pay for its AI calls.

    Args:
        app: the app. Its interface is detected.
        resolve_user: returns the app's own id of the user who makes a request (a string, an int or
            a UUID), or None if the visitor is not signed in. It gets a
            :class:`wattfare_mw.Request`, and may be async.
        interface: ``"asgi"`` or ``"wsgi"``, if it cannot be detected.
        client: a :class:`Wattfare` or an :class:`AsyncWattfare` to use, which the app closes.
            Replaces ``secret_key`` and ``base_url``.
        secret_key: the app's secret key. Defaults to ``WATTFARE_SECRET_KEY``.
        base_url: the service's address. Defaults to ``WATTFARE_BASE_URL``.
        token_path: POST creates a session token for the user's browser. None switches a path off.
        inference_path: POST calls a model. The part before ``/chat/completions`` is the base URL
            for an OpenAI client; GET ``/models`` below it lists the models.
        status_path: GET shows the user's connection. DELETE revokes it.
        client_path: GET serves the module for browsers, such as ``"/wattfare.js"``. The page that
            an approval returns to is next to it. None serves neither.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that returns
            it. None leaves it to the user.
        account_label: the name of the user's account at the app, which the approval shows, or a
            function of the request that returns it.
        models: the allowed models, as ids and globs (``"openai/*"``). None allows all.
        allow_grants: True if a one-time grant (``X-Wattfare-Grant``) may pay instead of a user.
        allowed_origins: origins of other sites whose pages may call, with the user's cookies.
        max_body_bytes: the largest body of an inference call, in bytes.
        max_calls_per_user: the most concurrent inference calls of one user, or of one grant, in
            this process. None for no limit.
        on_usage: called after each inference call that was not refused, with the user's id (None
            for a grant), the model, its :class:`TokenUsage` and its cost in USD (None if unknown).
            May be async.
        heartbeat: under ASGI, send a comment into a stream after this many seconds of silence. None
            sends no comments, and removes the service's.
        current_user: True to make :data:`wattfare_mw.current_user` the user of each request.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is invalid. The message says which.
    """

    if TYPE_CHECKING:

        @overload
        def __new__(
            cls, app: AnyASGIApp, *, interface: Literal["auto"] = ..., **options: Unpack[Options]
        ) -> WattfareASGIMiddleware: ...
        @overload
        def __new__(
            cls, app: AnyWSGIApp, *, interface: Literal["auto"] = ..., **options: Unpack[Options]
        ) -> WattfareWSGIMiddleware: ...
        @overload
        def __new__(
            cls, app: Any, *, interface: Literal["asgi"], **options: Unpack[Options]
        ) -> WattfareASGIMiddleware: ...
        @overload
        def __new__(
            cls, app: Any, *, interface: Literal["wsgi"], **options: Unpack[Options]
        ) -> WattfareWSGIMiddleware: ...
        def __new__(cls, *_args: Any, **_options: Any) -> Any: ...
