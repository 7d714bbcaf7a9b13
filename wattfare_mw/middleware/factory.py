"""``WattfareMiddleware(app, …)`` creates the ASGI or the WSGI middleware for an app."""

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
        """A base whose ``__init__`` accepts any arguments, because ``WattfareMiddleware.__new__``
        handles them."""

        def __init__(self, *_args: Any, **_options: Any) -> None: ...
else:
    _Base = Middleware

# These types do not describe the arguments, because each framework has its own types for scopes. An
# ASGI 2 app is called twice.
AnyASGIApp = (
    Callable[[Any, Any, Any], Awaitable[object]]
    | Callable[[Any], Callable[[Any, Any], Awaitable[object]]]
)
AnyWSGIApp = Callable[[Any, Any], object]


class _Factory(type):
    """Makes ``WattfareMiddleware(…)`` return an ASGI or a WSGI middleware. Both are instances of
    ``WattfareMiddleware``."""

    if not TYPE_CHECKING:  # type checkers use `WattfareMiddleware.__new__`

        def __call__(
            cls, app: Any, *, interface: Literal["auto", "asgi", "wsgi"] = "auto", **options: Any
        ) -> Middleware:
            hide_secret_key(options)  # a traceback may show local variables
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
    """Middleware for an ASGI or WSGI app whose users pay for its AI calls.

    Args:
        app: the app. Its interface is detected.
        resolve_user: a function that takes a :class:`wattfare_mw.Request`. It returns the app's own
            id of the user who makes the request (a string, an int or a UUID), or None if no user is
            signed in. It may be async.
        interface: ``"asgi"`` or ``"wsgi"``, if the app's interface cannot be detected.
        client: a :class:`Wattfare` or an :class:`AsyncWattfare` to use instead of ``secret_key``
            and ``base_url``. The app must close it.
        secret_key: the app's secret key. Defaults to ``WATTFARE_SECRET_KEY``.
        base_url: the service's address. Defaults to ``WATTFARE_BASE_URL``.
        token_path: the path at which POST creates a session token for the user's browser. For each
            path, None turns it off.
        inference_path: the path at which POST calls a model. The part before ``/chat/completions``
            is the base URL for an OpenAI client. There, GET ``/models`` lists the models.
        status_path: the path at which GET returns the user's connection, and DELETE revokes it.
        client_path: the path of the module for browsers, such as ``"/wattfare.js"``. The page that
            an approval returns to is in the same folder. None serves neither.
        request_limit: the monthly cap to ask for, in USD, or a function of the request that returns
            it. If None, the payer chooses the cap.
        account_label: the name of the user's account at the app, or a function of the request that
            returns it. The approval page shows it to the payer.
        models: the allowed models, as ids and globs (``"openai/*"``). None allows all models.
        allow_grants: True if a one-time grant (``X-Wattfare-Grant``) may pay instead of a user.
        allowed_origins: origins of other sites whose pages may call the paths with the user's
            cookies.
        max_body_bytes: the largest body of an inference call, in bytes.
        max_calls_per_user: the maximum number of concurrent inference calls of one user or one
            grant in this process. None for no limit.
        on_usage: a function that is called after each inference call that was not refused. It gets
            the user's id (None for a grant), the model, the :class:`TokenUsage` and the cost in USD
            (each None if unknown). It may be async.
        heartbeat: under ASGI, a stream without events gets a comment after each period of this many
            seconds. None sends no comments, and removes those of the service.
        current_user: True to provide :data:`wattfare_mw.current_user` in each request.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is invalid. The message names it.
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
