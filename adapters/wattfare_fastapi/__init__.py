"""Wattfare for FastAPI: the users of an app pay for its AI calls.

The paths are routes of the app. ``resolve_user`` is a dependency, so it can use the app's own
sign-in: a bearer token, a database session, ``dependency_overrides``.
"""

from __future__ import annotations

from typing import Annotated, Any, Unpack

try:
    from fastapi import Depends, FastAPI
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise ModuleNotFoundError(
        "FastAPI is not installed. Type: pip install 'wattfare-mw[fastapi]'", name="fastapi"
    ) from None
from starlette.routing import BaseRoute, Route
from starlette.types import Message
from wattfare_starlette import (
    WattfareMiddleware,
    add_innermost,
    get_user,
    get_user_sync,
    session_endpoint,
    wattfare_error_handler,
)

from wattfare_mw.framework import (
    AsyncUser,
    Options,
    Receive,
    Scope,
    Send,
    User,
    below_mount,
    hide_secret_key,
)

from .injection import SERVED, AnsweredByApp, Injected, headers_set, injected
from .openapi import documented_routes, wattfare_responses

__all__ = [
    "CurrentUser",
    "CurrentUserSync",
    "add_wattfare",
    "get_user",
    "get_user_sync",
    "session_endpoint",
    "wattfare_error_handler",
    "wattfare_responses",
]

CurrentUser = Annotated[AsyncUser, Depends(get_user)]
"""A handle for the signed-in user, for an ``async def`` endpoint."""

CurrentUserSync = Annotated[User, Depends(get_user_sync)]
"""A handle for the signed-in user, for a ``def`` endpoint."""


def add_wattfare(
    app: FastAPI, *, include_in_schema: bool = True, **options: Unpack[Options]
) -> None:
    """Add Wattfare's paths, ``get_user`` for endpoints, and a handler for WattfareErrors to an app.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`. ``resolve_user`` is a
    dependency of FastAPI, and so is a function in ``request_limit`` or ``account_label``. A
    dependency can have parameters such as ``user: Annotated[Account, Depends(current_user)]``.
    ``Depends(…)``, ``Security(…)``, ``Annotated[int, Depends(…)]`` and a function of only the
    request also work. If a dependency raises an exception, the app's exception handlers answer it.

    Args:
        app: the app.
        include_in_schema: True to show the paths in the app's OpenAPI document.
        options: the options of the middleware.

    Raises:
        WattfareAuthError: there is no secret key.
        TypeError, ValueError: an option is invalid. RuntimeError: the app has started.
    """
    hide_secret_key(options)
    given: dict[str, Any] = {**options}
    for name in given.keys() & {"resolve_user", "request_limit", "account_label"}:
        given[name] = injected(app, given[name])
    wattfare = _Middleware(app, **given)
    add_innermost(app, wattfare)
    guard = Injected(app, None, app.router.dependencies) if app.router.dependencies else None
    routes: list[BaseRoute] = [
        Route(
            path, _Endpoint(wattfare, path, guard), name=f"wattfare:{path}", include_in_schema=False
        )
        for path in wattfare.paths
    ]
    if include_in_schema:
        routes += documented_routes(app, options, wattfare.named_paths)
    # Our routes come first, because a route of the app may match any path, such as one for static
    # files.
    app.router.routes[:0] = routes


class _Middleware(WattfareMiddleware):
    """Answers paths without a route below the base URL of an OpenAI client."""

    let_through = (*WattfareMiddleware.let_through, AnsweredByApp)

    def _app_for(self, scope: Scope) -> Any:
        # The paths are routes of the app.
        return self.app if self._is_route(scope) else super()._app_for(scope)

    def _is_route(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        return below_mount(scope["path"], scope.get("root_path", "")) in self._routes

    def _as_raised(self, raised: Exception) -> Exception:
        return raised.error if isinstance(raised, AnsweredByApp) else raised

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        scope[SERVED] = True
        await super().serve(path, scope, receive, send)


class _Endpoint:
    """A route for one of our paths. It is an ASGI app, so that it answers any method."""

    def __init__(self, wattfare: WattfareMiddleware, path: str, guard: Injected | None) -> None:
        self._wattfare = wattfare
        self._path = path
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._guard is not None and scope["method"] != "OPTIONS":
            await self._guard.call(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers_set(scope)]
            await send(message)

        await self._wattfare.serve(self._path, scope, receive, send_with_headers)
