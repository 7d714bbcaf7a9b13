"""Wattfare for Litestar: the users of an app pay for its AI calls.

Litestar's own middleware never sees a path that has no route, so that the plugin registers
routes: what is set up for the app's other routes (sessions, authentication, guards) is there when
``resolve_user`` is asked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Unpack, cast

from litestar import Request, Response, asgi, post
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.plugins import InitPlugin
from litestar.types import Receive, Scope, Send

from wattfare_mw import AsyncUser, AsyncWattfare, User, WattfareError
from wattfare_mw.callables import given
from wattfare_mw.middleware.asgi import WattfareASGIMiddleware, request_of
from wattfare_mw.middleware.wrap import Options
from wattfare_mw.sessions import ResolveUser, error_response
from wattfare_mw.web import Request as NeutralRequest
from wattfare_mw.web import Response as Answer

__all__ = ["WattfareMiddleware", "WattfarePlugin", "session_route", "wattfare_error_handler"]


class WattfareMiddleware(WattfareASGIMiddleware):
    """Around a whole Litestar app; its options are those of
    :class:`wattfare_mw.WattfareMiddleware`, and ``resolve_user`` is given a Litestar connection.
    The app's own middleware has not run then: where a session or a user is needed, take
    :class:`WattfarePlugin`."""

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        super().__init__(app, **_with_connection(options))


class WattfarePlugin(InitPlugin):
    """``Litestar(plugins=[WattfarePlugin(resolve_user=…)])``.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`; ``resolve_user`` and a
    ``request_limit`` that is a function are given the connection, with its ``user``, ``auth`` and
    ``session``. Handlers may ask for ``wattfare_user: AsyncUser``, or where they are synchronous
    for ``wattfare_user_sync: User``; a WattfareError that they let through is answered in the
    protocol's JSON.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self._driver = WattfareASGIMiddleware(None, **_with_connection(options))

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Register what this app has of us."""
        opt: dict[str, Any] = {}
        if app_config.csrf_config is not None:
            # These routes have the gate's own rule, and clients that know no CSRF token.
            opt[app_config.csrf_config.exclude_from_csrf_key] = True
        app_config.route_handlers.extend(self._route(path, opt) for path in self._driver.paths)
        app_config.dependencies.setdefault("wattfare_user", Provide(self._user))
        app_config.dependencies.setdefault(
            "wattfare_user_sync", Provide(self._user_sync, sync_to_thread=True)
        )
        app_config.signature_types.extend([AsyncUser, User])
        handlers = cast("dict[Any, Any]", app_config.exception_handlers)  # pyright: ignore[reportUnknownMemberType]
        handlers.setdefault(WattfareError, wattfare_error_handler)
        app_config.on_shutdown.append(self._driver.aclose)
        return app_config

    def _route(self, path: str, opt: dict[str, Any]) -> ASGIRouteHandler:
        @asgi(path, opt=opt, copy_scope=True, name=f"wattfare:{path}")
        async def wattfare(scope: Scope, receive: Receive, send: Send) -> None:
            await self._driver.serve(path, scope, receive, send)  # type: ignore[arg-type]

        return wattfare

    async def _user(self, request: Request[Any, Any, Any]) -> AsyncUser:
        return await self._driver.user(request.scope)  # type: ignore[arg-type]

    def _user_sync(self, request: Request[Any, Any, Any]) -> User:
        return self._driver.user_sync(request.scope)  # type: ignore[arg-type]


def session_route(
    path: str,
    client: AsyncWattfare,
    resolve_user: ResolveUser,
    request_limit: Any = None,
    *,
    allowed_origins: Collection[str] = (),
) -> HTTPRouteHandler:
    """The token route alone, as a handler for an app, a router or a controller; see
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    handler = client.session_handler(
        given(resolve_user, _connection),
        given(request_limit, _connection),
        allowed_origins=allowed_origins,
    )

    @post(path)
    async def wattfare_session(request: Request[Any, Any, Any]) -> Response[bytes]:
        scope = cast("dict[str, Any]", request.scope)
        return _litestar_response(await handler(request_of(scope)))

    return wattfare_session


def wattfare_error_handler(
    _request: Request[Any, Any, Any], error: WattfareError
) -> Response[bytes]:
    """The protocol's answer to a WattfareError: for ``exception_handlers={WattfareError: …}``."""
    return _litestar_response(error_response(error))


def _with_connection(options: Options) -> Options:
    changed: Options = {**options, "resolve_user": given(options["resolve_user"], _connection)}
    if "request_limit" in options:
        changed["request_limit"] = given(options["request_limit"], _connection)
    return changed


def _connection(request: NeutralRequest) -> ASGIConnection[Any, Any, Any, Any]:
    return ASGIConnection(request.scope)  # type: ignore[arg-type]


def _litestar_response(answer: Answer) -> Response[bytes]:
    headers = dict(answer.headers)
    media_type = headers.pop("content-type", None)
    return Response(answer.body, status_code=answer.status, headers=headers, media_type=media_type)
