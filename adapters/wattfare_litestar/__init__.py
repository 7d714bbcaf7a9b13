"""Wattfare for Litestar: the users of an app pay for its AI calls.

The plugin registers its paths as routes, because Litestar does not run the app's middleware for a
path without a route. So ``resolve_user`` can use the app's sessions, authentication and guards.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Unpack, cast

try:
    from litestar import Request, Response, asgi, get
except ModuleNotFoundError as error:
    if error.name != "litestar":
        raise
    raise ModuleNotFoundError(
        "Litestar is not installed. Type: pip install 'wattfare-mw[litestar]'", name="litestar"
    ) from None
from litestar.config.app import AppConfig
from litestar.config.cors import CORSConfig
from litestar.config.csrf import CSRFConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import HTTPException, NotFoundException
from litestar.exceptions.responses import create_exception_response  # pyright: ignore[reportUnknownVariableType]
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.plugins import InitPlugin
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from wattfare_mw.framework import (
    AccountLabelOption,
    AppCors,
    AsyncUser,
    AsyncWattfare,
    Options,
    RequestLimitOption,
    ResolveUser,
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

from .openapi import documented

__all__ = ["WattfareMiddleware", "WattfarePlugin", "session_route", "wattfare_error_handler"]

# Litestar converts these exceptions to responses, so `resolve_user` can raise them as in a handler.
_LITESTAR_ANSWERS = (HTTPException,)


class WattfareMiddleware(WattfareASGIMiddleware):
    """Middleware around a whole Litestar app. The options are those of
    :class:`wattfare_mw.WattfareMiddleware`. ``resolve_user`` gets a Litestar connection. At that
    time, the app's own middleware has not run, so there is no session and no user. If you need
    them, use :class:`WattfarePlugin`."""

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        super().__init__(app, **adapt_options(options, _connection))


class WattfarePlugin(InitPlugin):
    """The plugin: ``Litestar(plugins=[WattfarePlugin(resolve_user=…)])``.

    The options are those of :class:`wattfare_mw.WattfareMiddleware`. Functions in the options, such
    as ``resolve_user``, get the connection with its ``user``, ``auth`` and ``session``. If a
    function raises an ``HTTPException``, the app's exception handlers answer it. An async handler
    can have the parameter ``wattfare_user: AsyncUser``, and a sync handler ``wattfare_user_sync:
    User``. If a handler does not catch a WattfareError, the response has the protocol's JSON. The
    app's OpenAPI document shows the paths, unless ``include_in_schema`` is False.
    """

    def __init__(self, *, include_in_schema: bool = True, **options: Unpack[Options]) -> None:
        self._in_schema = include_in_schema
        self._prefix = ""
        self._driver = _Driver(None, **adapt_options(options, _connection))

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes, dependencies and exception handlers to the app."""
        self._prefix = app_config.path.rstrip("/")
        opt = _opt(app_config.csrf_config)
        if self._driver.has_current_user:
            app_config.middleware.insert(0, self._driver.around)
        app_config.route_handlers.extend(self._route(path, opt) for path in self._driver.paths)
        if self._driver.openai_base is not None:
            app_config.route_handlers.append(self._models(self._driver.openai_base, opt))
        app_config.dependencies.setdefault("wattfare_user", Provide(self._user))
        app_config.dependencies.setdefault("wattfare_user_sync", Provide(self._user_sync))
        handlers = cast("dict[Any, Any]", app_config.exception_handlers)  # pyright: ignore[reportUnknownMemberType]
        handlers.setdefault(WattfareError, wattfare_error_handler)
        if self._driver.openai_base is not None and not handlers.keys() & {404, NotFoundException}:
            handlers[NotFoundException] = self._not_found
        if app_config.openapi_config is not None and self._in_schema:
            app_config.openapi_config = documented(
                app_config.openapi_config, self._prefix, self._driver.named_paths
            )
        app_config.on_shutdown.append(self._driver.aclose)
        return app_config

    def _route(self, path: str, opt: dict[str, Any]) -> ASGIRouteHandler:
        # Without a copy of the scope, so that a session set by `resolve_user` is saved.
        @asgi(path, opt=opt, copy_scope=False, name=f"wattfare:{path}")
        async def wattfare(scope: Scope, receive: Receive, send: Send) -> None:
            await self._driver.serve(path, scope, receive, send)  # type: ignore[arg-type]

        return wattfare

    def _models(self, base: str, opt: dict[str, Any]) -> HTTPRouteHandler:
        # The path of an ASGI handler cannot have parameters.
        @get(
            f"{base}/models/{{model:path}}",
            opt=opt,
            name="wattfare:model",
            include_in_schema=False,
        )
        async def wattfare(request: Request[Any, Any, Any]) -> Response[None]:
            model = str(request.path_params["model"]).lstrip("/")
            return _Served(self._driver, f"{base}/models/{model}")

        return wattfare

    def _not_found(
        self, request: Request[Any, Any, Any], error: NotFoundException
    ) -> Response[Any]:
        """Answer a path of OpenAI's API for which the app has no route. The answer says what to use
        instead."""
        path = request.scope["path"].removeprefix(self._prefix)
        # A route of the app can raise the same exception.
        if "route_handler" not in request.scope and self._driver.answers_unrouted(path):
            return _Served(self._driver, path)
        handlers = cast("dict[Any, Any]", request.app.exception_handlers)  # pyright: ignore[reportUnknownMemberType]
        for kind in NotFoundException.__mro__[1:]:
            if kind in handlers:
                return handlers[kind](request, error)
        return cast("Response[Any]", create_exception_response(request, error))

    # A scope also works for a websocket.
    async def _user(self, scope: Scope) -> AsyncUser:
        return await self._driver.user(scope)  # type: ignore[arg-type]

    async def _user_sync(self, scope: Scope) -> User:
        return self._driver.user_sync(await self._user(scope))


class _FindCors:
    """Finds what the app's CORSConfig allows. Litestar adds the CORS headers itself."""

    def __init__(self) -> None:
        self._last: tuple[CORSConfig | None, AppCors | None] = (None, None)

    def __call__(self, request: NeutralRequest) -> AppCors | None:
        config: CORSConfig | None = request.scope["litestar_app"].cors_config
        last, cors = self._last
        if config is not last:
            cors = None
            if config is not None:
                cors = AppCors(
                    config.is_origin_allowed, credentials=config.allow_credentials, answers=True
                )
            self._last = config, cors
        return cors


class _Driver(WattfareASGIMiddleware):
    let_through = _LITESTAR_ANSWERS

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        self.find_app_cors = _FindCors()
        super().__init__(app, **options)


class _Served(Response[None]):
    """A handler's response with the middleware's own answer."""

    def __init__(self, driver: _Driver, path: str) -> None:
        super().__init__(None)
        self._driver, self._path = driver, path

    def to_asgi_response(self, *_args: Any, **_options: Any) -> Any:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await self._driver.serve(self._path, scope, receive, send)  # type: ignore[arg-type]

        return answer


def session_route(
    path: str,
    client: AsyncWattfare,
    resolve_user: ResolveUser,
    request_limit: RequestLimitOption = None,
    *,
    account_label: AccountLabelOption = None,
    allowed_origins: Collection[str] = (),
) -> ASGIRouteHandler:
    """Create a handler for an app, a router or a controller: a token route. See
    :meth:`wattfare_mw.Wattfare.session_handler`."""
    handler = client.session_handler(
        adapt_function(resolve_user, _connection),
        adapt_function(request_limit, _connection),
        account_label=adapt_function(account_label, _connection),
        allowed_origins=allowed_origins,
        let_through=_LITESTAR_ANSWERS,
        app_cors=_FindCors(),
    )

    # This handles any HTTP method, so that a 405 is in the protocol's JSON. In a controller, it
    # becomes a method of the class.
    @asgi(path, opt=_opt(None), copy_scope=False)
    async def wattfare_session(
        self: Any = None, *, scope: Scope, receive: Receive, send: Send
    ) -> None:
        answer = await handler(request_from_scope(cast("dict[str, Any]", scope)))
        response = ASGIResponse(body=answer.body, status_code=answer.status, headers=answer.headers)
        await response(scope, receive, send)

    return wattfare_session


def wattfare_error_handler(
    _request: Request[Any, Any, Any], error: WattfareError
) -> Response[bytes]:
    """The response to a WattfareError in the protocol's JSON, for
    ``exception_handlers={WattfareError: …}``."""
    return _litestar_response(respond_to_error(error))


def _opt(csrf: CSRFConfig | None) -> dict[str, Any]:
    # Our routes have their own check against other sites, and their clients have no CSRF token. An
    # app without a CSRFConfig may add a CSRFMiddleware itself, usually with the default key.
    return {(csrf or CSRFConfig("")).exclude_from_csrf_key: True}


def _connection(request: NeutralRequest) -> ASGIConnection[Any, Any, Any, Any]:
    return ASGIConnection(request.scope)  # type: ignore[arg-type]


def _litestar_response(response: NeutralResponse) -> Response[bytes]:
    headers = dict(response.headers)
    media_type = headers.pop("content-type", None)
    return Response(
        response.body, status_code=response.status, headers=headers, media_type=media_type
    )
