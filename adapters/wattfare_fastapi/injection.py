"""Calls a dependency as FastAPI does, but outside of an endpoint."""

# FastAPI cannot evaluate string annotations of nested functions, so this module does not import
# `annotations` from `__future__`.
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_origin

from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.params import Depends as DependsParameter
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.types import Message

from wattfare_mw.framework import Request as NeutralRequest
from wattfare_mw.framework import WattfareError

#: A key that marks the scope of a request to one of our paths.
SERVED = "wattfare.served"
_RESULT = "wattfare.result"
_HEADERS = "wattfare.headers"
# Each call of a dependency has an empty response of its own. These headers describe that response,
# so they are not added to the real response.
_OF_THE_BODY = frozenset({b"content-length", b"content-type"})
# FastAPI's keys for the current route and for exception handlers. They are removed, because the
# handlers would convert an exception of the dependency to a response, but the exception must be
# raised.
_OF_THE_ROUTE = frozenset({"fastapi", "route", "endpoint", "starlette.exception_handlers"})


class AnsweredByApp(Exception):  # noqa: N818  it carries an error of the app's
    """Wraps an exception for which the app has a handler."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(f"the app's exception handlers answer {type(error).__name__}")


class Injected:
    """An app's dependency as a function of a :class:`wattfare_mw.Request`.

    FastAPI treats each call as a separate request. So a dependency with ``yield`` ends before the
    response begins, and a stream does not keep a database session open.

    Args:
        app: the app with the ``dependency_overrides`` and the exception handlers.
        dependency: the function to call. None to call only ``dependencies``.
        dependencies: the dependencies to call before it.
        overridden_as: the function to look up in ``dependency_overrides``, if it is not
            ``dependency``.
    """

    def __init__(
        self,
        app: FastAPI,
        dependency: DependsParameter | None,
        dependencies: Sequence[DependsParameter] = (),
        overridden_as: Callable[..., Any] | None = None,
    ) -> None:
        self._app = app
        self._overridden_as = overridden_as

        async def on_request(request: Request, result: Any = dependency) -> None:
            request.scope[_RESULT] = result

        async def on_websocket(websocket: WebSocket, result: Any = dependency) -> None:
            websocket.scope[_RESULT] = result

        http = APIRoute(
            "/",
            on_request,
            status_code=204,
            dependencies=dependencies,
            dependency_overrides_provider=app,
        )
        websocket = APIWebSocketRoute(
            "/", on_websocket, dependencies=dependencies, dependency_overrides_provider=app
        )
        self._run = {
            "http": AsyncExitStackMiddleware(http.app),
            "websocket": AsyncExitStackMiddleware(websocket.app),
        }

    async def __call__(self, request: NeutralRequest) -> Any:
        """Call the dependency for this request, and return its result.

        Raises:
            AnsweredByApp: on one of our paths, the dependency raised an exception for which the app
                has a handler.
        """
        try:
            return await self.call(request.scope)
        except WattfareError:
            raise
        except Exception as error:
            # A handler for all exceptions does not count here.
            kinds = set(type(error).__mro__) - {Exception, BaseException, object}
            if SERVED not in request.scope or kinds.isdisjoint(self._app.exception_handlers):
                raise
            raise AnsweredByApp(error) from error

    async def call(self, scope: Any) -> Any:
        """The same for a scope. This raises the dependency's own exceptions."""
        overrides: dict[Any, Any] = self._app.dependency_overrides
        override = overrides.get(self._overridden_as)
        if override is not None:
            return await Injected(self._app, Depends(override)).call(scope)
        inner = {name: value for name, value in scope.items() if name not in _OF_THE_ROUTE}

        async def keep_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope.setdefault(_HEADERS, []).extend(
                    header for header in message["headers"] if header[0] not in _OF_THE_BODY
                )

        await self._run[scope["type"]](inner, _no_body, keep_headers)
        return inner[_RESULT]


async def _no_body() -> Any:
    raise RuntimeError(
        "resolve_user cannot read the request's body, because the middleware forwards the body"
    )


def headers_set(scope: Any) -> list[tuple[bytes, bytes]]:
    """The headers that dependencies have set on the response, such as a renewed cookie."""
    headers: list[tuple[bytes, bytes]] = scope.get(_HEADERS, [])
    return headers


def injected(app: FastAPI, option: Any) -> Any:
    """Convert an option to a function of a :class:`wattfare_mw.Request`, if it is a dependency or a
    function of FastAPI's request. Other values, such as numbers, are returned unchanged."""
    dependency = dependency_of(option)
    if dependency is not None:
        return Injected(app, dependency)
    if callable(option):
        return Injected(app, Depends(_of_connection(option)), overridden_as=option)
    return option


def dependency_of(option: Any) -> DependsParameter | None:
    """The ``Depends`` of an option that is a dependency. None for a function that takes only the
    request, and for other values.

    Raises:
        TypeError: the dependency has no function.
    """
    if get_origin(option) is Annotated:  # such as the app's `CurrentAccount`
        found = [each for each in option.__metadata__ if isinstance(each, DependsParameter)]
        option = found[-1] if found else Depends()
    if isinstance(option, DependsParameter):
        if option.dependency is None:  # FastAPI would use the type of a parameter
            raise TypeError("A dependency must have a function, such as Depends(current_user_id).")
        return option
    if not callable(option) or _takes_only_request(option):
        return None
    dependency: DependsParameter = Depends(option)
    return dependency


def _takes_only_request(function: Callable[..., Any]) -> bool:
    """True if this is a function of only the request, such as ``lambda request: …``."""
    try:
        (parameter,) = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, TypeError, ValueError):  # another number of parameters, or no signature
        return False
    if parameter.default is not parameter.empty or parameter.kind not in _POSITIONAL:
        return False
    kind = parameter.annotation
    if kind in (parameter.empty, Any):
        return True
    return isinstance(kind, type) and issubclass(kind, HTTPConnection)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _of_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a function of the request to a dependency. The dependency also works for
    websockets."""

    async def dependency(connection: HTTPConnection) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(connection)
        result = await run_in_threadpool(function, connection)
        return await result if inspect.isawaitable(result) else result

    return dependency
