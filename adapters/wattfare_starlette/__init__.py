"""Wattfare for Starlette and FastAPI: the users of an app pay for its AI calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Unpack

import anyio.from_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from wattfare_mw.framework import (
    AccountLabelOption,
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
# `raise HTTPException(403)` in `resolve_user` is for Starlette to answer, as it is in a view.
_STARLETTE_ANSWERS = (HTTPException,)


class WattfareMiddleware(WattfareASGIMiddleware):
    """For ``app.add_middleware(WattfareMiddleware, resolve_user=…)``, ``Middleware(…)``, or
    around the app.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`; ``resolve_user`` and a
    ``request_limit`` that is a function are given Starlette's request; an ``HTTPException`` of
    theirs is answered by the app's exception handlers. Middleware that sets ``request.session``
    or ``request.user`` must be outside of this one: added after it.

    For the WattfareErrors that views let through, see :func:`add_wattfare` or
    :func:`wattfare_error_handler`. A mounted app hears of no shutdown from Starlette: where the
    middleware is around one alone, give it a ``client`` and close that with the outer app.
    """

    let_through: LetThrough = _STARLETTE_ANSWERS

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        super().__init__(app, **adapt_options(options, _starlette_request))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope[_SCOPE_KEY] = self
        await super().__call__(scope, receive, send)

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        try:
            await super().serve(path, scope, receive, send)
        except HTTPException as raised:
            # We stand outside of Starlette's own place for it.
            error = raised

            async def raise_again(_scope: Scope, _receive: Receive, _send: Send) -> None:
                raise error

            handlers = getattr(scope.get("app", self.app), "exception_handlers", None)
            await ExceptionMiddleware(raise_again, handlers)(scope, receive, send)


def add_wattfare(app: Starlette, **options: Unpack[Options]) -> None:
    """Add the middleware to an app, and answers for the WattfareErrors that its views let
    through. FastAPI's app is one, too."""
    app.add_middleware(WattfareMiddleware, **options)
    if WattfareError not in app.exception_handlers:  # the app's own goes first
        app.add_exception_handler(WattfareError, wattfare_error_handler)


async def get_user(request: HTTPConnection) -> AsyncUser:
    """The signed-in user's budget, in an async view, of a websocket too, or as a FastAPI
    dependency.

    Raises:
        WattfareAuthError: nobody is signed in.
        RuntimeError: no WattfareMiddleware is around this app.
    """
    return await _middleware_of(request).user(request.scope)


def get_user_sync(request: HTTPConnection) -> User:
    """:func:`get_user`, for a view that is no coroutine, which Starlette runs in a thread."""
    # Asked on the app's own event loop, where an asynchronous `resolve_user` has its database.
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
    """The token route alone, as an endpoint: ``Route("/token", …, methods=["POST"])``; see
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    handler = client.session_handler(
        adapt_function(resolve_user, _starlette_request),
        adapt_function(request_limit, _starlette_request),
        account_label=adapt_function(account_label, _starlette_request),
        allowed_origins=allowed_origins,
        let_through=_STARLETTE_ANSWERS,
    )

    async def wattfare_session(request: Request) -> Response:
        return _starlette_response(await handler(request_from_scope(request.scope)))

    return wattfare_session


def wattfare_error_handler(_request: Request, error: Exception) -> Response:
    """The protocol's answer to a WattfareError: for ``exception_handlers={WattfareError: …}``."""
    if not isinstance(error, WattfareError):
        raise error
    return _starlette_response(respond_to_error(error))


def _middleware_of(request: HTTPConnection) -> WattfareMiddleware:
    middleware = request.scope.get(_SCOPE_KEY)
    if middleware is None:
        raise RuntimeError("no WattfareMiddleware is around this app: add it first")
    return middleware


def _starlette_request(request: NeutralRequest) -> HTTPConnection:
    kind = Request if request.scope["type"] == "http" else HTTPConnection
    return kind(request.scope)


def _starlette_response(response: NeutralResponse) -> Response:
    return Response(response.body, response.status, response.headers)
