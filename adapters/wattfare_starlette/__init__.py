"""Wattfare for Starlette: the users of an app pay for its AI calls. For FastAPI, use
:mod:`wattfare_fastapi`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Unpack

import anyio.from_thread

try:
    from starlette.applications import Starlette
except ModuleNotFoundError as error:
    if error.name != "starlette":
        raise
    raise ModuleNotFoundError(
        "Starlette is not installed. Type: pip install 'wattfare-mw[starlette]'", name="starlette"
    ) from None
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from wattfare_mw.framework import (
    AccountLabelOption,
    AppCors,
    AsyncUser,
    AsyncWattfare,
    LetThrough,
    Options,
    Receive,
    RequestLimitOption,
    ResolveUser,
    Scope,
    Send,
    User,
    WattfareASGIMiddleware,
    WattfareError,
    adapt_function,
    adapt_options,
    hide_secret_key,
    request_from_scope,
    respond_to_error,
)
from wattfare_mw.framework import Request as NeutralRequest
from wattfare_mw.framework import Response as NeutralResponse

__all__ = [
    "WattfareMiddleware",
    "add_wattfare",
    "get_user",
    "get_user_sync",
    "session_endpoint",
    "wattfare_error_handler",
]

_SCOPE_KEY = "wattfare"
# Starlette converts these exceptions to responses, so `resolve_user` can raise them as in a view.
_STARLETTE_ANSWERS = (HTTPException,)


class WattfareMiddleware(WattfareASGIMiddleware):
    """The middleware. Most apps should use :func:`add_wattfare` instead. Use this class with
    ``app.add_middleware(WattfareMiddleware, resolve_user=…)`` or ``Middleware(…)``, or wrap the app
    with it.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`. Functions in the options, such
    as ``resolve_user``, get Starlette's request. If a function raises an ``HTTPException``, the
    app's exception handlers answer it. Middleware that sets ``request.session`` or ``request.user``
    must run before this middleware, so call ``app.add_middleware`` for it later.

    Starlette does not send a shutdown to mounted apps. If only a mounted app has the middleware,
    pass a ``client``, and close the client with the outer app.
    """

    let_through: LetThrough = _STARLETTE_ANSWERS

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        self._find_cors = _FindCors(self)
        self.find_app_cors = self._cors
        super().__init__(app, **adapt_options(options, _starlette_request))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope[_SCOPE_KEY] = self
        await super().__call__(scope, receive, send)

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        try:
            await super().serve(path, scope, receive, send)
        except self.let_through as raised:
            # This middleware may run outside of Starlette's own error handling.
            error = self._as_raised(raised)

            async def raise_again(_scope: Scope, _receive: Receive, _send: Send) -> None:
                raise error

            handlers = getattr(scope.get("app", self.app), "exception_handlers", None)
            await ExceptionMiddleware(raise_again, handlers)(scope, receive, send)

    def _as_raised(self, raised: Exception) -> Exception:
        return raised

    def _cors(self, request: NeutralRequest) -> AppCors | None:
        return self._find_cors(request.scope.get("app", self.app))


def add_wattfare(app: Starlette, **options: Unpack[Options]) -> None:
    """Add Wattfare's paths, ``get_user()`` for views, and a handler for WattfareErrors to an app.

    All middleware of the app runs before Wattfare's paths, whenever it is added. So
    ``resolve_user`` can use ``request.session`` and ``request.user``. The options are those of
    :class:`wattfare_mw.WattfareMiddleware`.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is invalid. RuntimeError: the app has started.
    """
    hide_secret_key(options)
    _refuse_dependency(options.get("resolve_user"))
    add_innermost(app, WattfareMiddleware(app, **options))


def add_innermost(app: Starlette, wattfare: WattfareMiddleware) -> None:
    """Make this middleware the innermost one, and register its handler for WattfareErrors."""
    if app.middleware_stack is not None:
        raise RuntimeError("This app has already started. Call add_wattfare() before it starts.")
    app.user_middleware.append(Middleware(_placed, wattfare))
    if WattfareError not in app.exception_handlers:  # the app's own handler takes precedence
        app.add_exception_handler(WattfareError, wattfare_error_handler)


def _placed(app: Any, wattfare: WattfareMiddleware) -> WattfareMiddleware:
    wattfare.app = app
    return wattfare


def _refuse_dependency(function: Any) -> None:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, TypeError, ValueError):  # Python cannot inspect it
        return
    for parameter in parameters:
        marks = (parameter.default, *getattr(parameter.annotation, "__metadata__", ()))
        if any(type(mark).__module__ == "fastapi.params" for mark in marks):
            raise TypeError(
                "This resolve_user is a dependency of FastAPI. Use add_wattfare() of"
                " wattfare_fastapi instead."
            )


async def get_user(request: HTTPConnection) -> AsyncUser:
    """A handle for the signed-in user, in an async view. It also works for a websocket, and as a
    FastAPI dependency.

    Raises:
        WattfareAuthError: no user is signed in.
        RuntimeError: this app has no Wattfare.
    """
    return await _middleware_of(request).user(request.scope)


def get_user_sync(request: HTTPConnection) -> User:
    """:func:`get_user`, for a synchronous view, which Starlette runs in a thread."""
    # `get_user` must run on the app's event loop, because the database connections of an async
    # `resolve_user` belong to it.
    user = anyio.from_thread.run(get_user, request)
    return _middleware_of(request).user_sync(user)


def session_endpoint(
    client: AsyncWattfare,
    resolve_user: ResolveUser,
    request_limit: RequestLimitOption = None,
    *,
    account_label: AccountLabelOption = None,
    allowed_origins: Collection[str] = (),
) -> Callable[[Request], Awaitable[Response]]:
    """Create an endpoint: a token route, for ``Route("/token", …, methods=["POST"])``. See
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    find_cors = _FindCors()
    handler = client.session_handler(
        adapt_function(resolve_user, _starlette_request),
        adapt_function(request_limit, _starlette_request),
        account_label=adapt_function(account_label, _starlette_request),
        allowed_origins=allowed_origins,
        let_through=_STARLETTE_ANSWERS,
        app_cors=lambda request: find_cors(request.scope.get("app")),
    )

    async def wattfare_session(request: Request) -> Response:
        return _starlette_response(await handler(request_from_scope(request.scope)))

    return wattfare_session


def wattfare_error_handler(_request: Request, error: Exception) -> Response:
    """The response to a WattfareError in the protocol's JSON, for
    ``exception_handlers={WattfareError: …}``."""
    if not isinstance(error, WattfareError):
        raise error
    return _starlette_response(respond_to_error(error))


class _FindCors:
    """Finds what the app's own CORSMiddleware allows. It reads the settings once."""

    def __init__(self, wattfare: WattfareMiddleware | None = None) -> None:
        self._wattfare = wattfare
        self._last: tuple[Any, AppCors | None] = (None, None)

    def __call__(self, app: Any) -> AppCors | None:
        last, cors = self._last
        if last is not app:
            cors = self._of(app)
            self._last = app, cors
        return cors

    def _of(self, app: Any) -> AppCors | None:
        wattfare = self._wattfare
        if isinstance(app, CORSMiddleware):  # our middleware wraps it
            return _app_cors_of(app, answers=False)
        # The CORSMiddleware wraps ours, unless ours wraps it.
        answers = wattfare is None or app is not wattfare.app
        for entry in getattr(app, "user_middleware", ()):
            kind: Any = entry.cls
            if any(arg is wattfare for arg in entry.args) or _is_kind(kind, WattfareMiddleware):
                answers = False
            elif _is_kind(kind, CORSMiddleware):
                return _app_cors_of(kind(app, *entry.args, **entry.kwargs), answers=answers)
        return None


def _is_kind(kind: Any, wanted: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, wanted)


def _app_cors_of(cors: CORSMiddleware, *, answers: bool) -> AppCors:
    credentials = "Access-Control-Allow-Credentials" in cors.simple_headers
    return AppCors(cors.is_allowed_origin, credentials=credentials, answers=answers)


def _middleware_of(request: HTTPConnection) -> WattfareMiddleware:
    middleware = request.scope.get(_SCOPE_KEY)
    if middleware is None:
        raise RuntimeError(
            "This app has no WattfareMiddleware. Call add_wattfare(app, resolve_user=…) first."
        )
    return middleware


def _starlette_request(request: NeutralRequest) -> HTTPConnection:
    kind = Request if request.scope["type"] == "http" else HTTPConnection
    return kind(request.scope)


def _starlette_response(response: NeutralResponse) -> Response:
    return Response(response.body, response.status, response.headers)
