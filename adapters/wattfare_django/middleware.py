"""The middleware. It answers Wattfare's paths, and adds a handle for the user to each request."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Awaitable
from functools import cached_property, partial
from typing import Any, Unpack, cast

from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest
from django.utils.asyncio import async_unsafe
from django.utils.functional import SimpleLazyObject

from wattfare_mw.framework import (
    AsyncUser,
    CurrentRequest,
    Options,
    User,
    WattfareASGIMiddleware,
    WattfareError,
    WattfareWSGIMiddleware,
    adapt_options,
    respond_to_error,
)

from .conf import read_setting
from .cors import find_cors
from .current import CurrentDjangoRequest, end_with
from .messages import aread_body, django_response, our_request, plain_response, read_body
from .users import (
    DJANGO_ANSWERS,
    asigned_in_user,
    django_request,
    in_djangos_thread,
    is_async,
    signed_in_user,
)

_refuse_event_loops: Any = async_unsafe(
    "request.wattfare is only for synchronous code. In an async view, write `user = await"
    " request.awattfare()`."
)


class WattfareRequest(HttpRequest):
    """A request after the middleware, for type annotations of views."""

    #: A handle for the signed-in user, in a synchronous view.
    wattfare: User

    async def awattfare(self) -> AsyncUser:
        """A handle for the signed-in user, in an asynchronous view.

        Raises:
            WattfareAuthError: no user is signed in.
        """
        raise NotImplementedError  # the middleware sets it


class WattfareMiddleware:
    """The middleware. Add ``"wattfare_django.WattfareMiddleware"`` to ``MIDDLEWARE``, after the
    middleware that sets ``request.user``.

    The setting ``WATTFARE`` has the options of :class:`wattfare_mw.WattfareMiddleware`, in upper
    case: ``WATTFARE = {"SECRET_KEY": …, "REQUEST_LIMIT": 20}``. A function may be set by its dotted
    path. It gets Django's request, and may be asynchronous. By default, the user's id is the
    primary key of ``request.user``.

    In a synchronous view, ``request.wattfare`` is a :class:`~wattfare_mw.User`. In an asynchronous
    view, ``await request.awattfare()`` returns an :class:`~wattfare_mw.AsyncUser`. If a view does
    not catch a WattfareError, the response has the protocol's JSON.

    Raises:
        ImproperlyConfigured: there is no secret key, or an option is invalid.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self._is_async = is_async(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        driver = self._async if self._is_async else self._sync
        self._paths = frozenset(driver.paths)
        self._answers_unrouted = driver.answers_unrouted
        self._has_current_user = driver.has_current_user

    @cached_property
    def _sync(self) -> SyncDriver:
        return SyncDriver.from_setting()

    @cached_property
    def _async(self) -> AsyncDriver:
        return AsyncDriver.from_setting()

    def __call__(self, request: Any) -> Any:
        """Answer a request to one of our paths, and pass on any other request."""
        if self._is_async:
            return self._acall(request)
        self._set_user(request)
        path = request.path_info
        if path in self._paths:
            return self._answer(request, path)
        current = self._current_request(request)
        if current is None:
            response = self.get_response(request)
        else:
            with current.active():
                response = end_with(self.get_response(request), current)
        return self._answer(request, path) if self._is_missing(request, response) else response

    async def _acall(self, request: Any) -> Any:
        self._set_user(request)
        path = request.path_info
        if path in self._paths:
            return await self._aanswer(request, path)
        current = self._current_request(request)
        if current is None:
            response = await self.get_response(request)
        else:
            try:
                with current.active():
                    response = end_with(await self.get_response(request), current)
            except BaseException:  # the client has left
                current.end()
                raise
        if self._is_missing(request, response):
            return await self._aanswer(request, path)
        return response

    def process_exception(self, _request: Any, error: Exception) -> Any:
        """Return the response to a WattfareError that a view does not catch."""
        if isinstance(error, WattfareError):
            return plain_response(respond_to_error(error))
        return None

    def _set_user(self, request: Any) -> None:
        request.wattfare = SimpleLazyObject(partial(self._user, request))
        request.awattfare = partial(self._auser, request)

    def _user(self, request: Any) -> User:
        return _refuse_event_loops(self._sync.user_of)(our_request(request))

    def _auser(self, request: Any) -> Awaitable[AsyncUser]:
        return self._async.user_of(our_request(request))

    def _current_request(self, request: Any) -> CurrentRequest | None:
        if not self._has_current_user:
            return None
        return self._sync.current_request(partial(our_request, request))

    def _is_missing(self, request: Any, response: Any) -> bool:
        """True if the project has no route for a path that an OpenAI client may request."""
        return (
            response.status_code == 404
            and request.resolver_match is None
            and self._answers_unrouted(request.path_info)
        )

    # Other middleware may be only sync or only async, so Django may call this middleware in a mode
    # that differs from the server's. The server reads the response, and an ASGI server expects an
    # async stream. So the driver depends on the server.

    def _answer(self, request: Any, path: str) -> Any:
        if isinstance(request, ASGIRequest):
            return async_to_sync(self._respond_async)(request, path)
        return self._respond(request, path)

    async def _aanswer(self, request: Any, path: str) -> Any:
        if isinstance(request, ASGIRequest):
            return await self._respond_async(request, path)
        return await sync_to_async(self._respond)(request, path)

    def _respond(self, request: Any, path: str) -> Any:
        answer = self._sync.respond(our_request(request, path), partial(read_body, request))
        return django_response(request, answer)

    async def _respond_async(self, request: Any, path: str) -> Any:
        read = partial(aread_body, request)
        answer = await self._async.respond(our_request(request, path), read)
        return django_response(request, answer)


class SyncDriver(WattfareWSGIMiddleware):
    """Answers requests under WSGI."""

    let_through = DJANGO_ANSWERS
    current_request_class = CurrentDjangoRequest

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        self.find_app_cors = find_cors()
        super().__init__(app, **options)

    @classmethod
    def from_setting(cls) -> SyncDriver:
        """The driver with the options of the setting."""
        return _checked(cls, {"resolve_user": signed_in_user, **read_setting()})


class AsyncDriver(WattfareASGIMiddleware):
    """Answers requests under ASGI."""

    let_through = DJANGO_ANSWERS

    def __init__(self, app: Any, **options: Unpack[Options]) -> None:
        self.find_app_cors = find_cors()
        super().__init__(app, **options)

    @classmethod
    def from_setting(cls) -> AsyncDriver:
        """The driver with the options of the setting."""
        options: dict[str, Any] = {"resolve_user": asigned_in_user, **read_setting()}
        for name in ("resolve_user", "request_limit", "account_label", "on_usage"):
            if name in options:
                options[name] = in_djangos_thread(options[name])
        return _checked(cls, options)


def _checked(kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(None, **adapt_options(cast("Options", options), django_request))
    except (TypeError, ValueError, WattfareError) as error:
        raise ImproperlyConfigured(f"The setting WATTFARE: {error}") from error
