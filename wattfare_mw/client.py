"""Private: the clients ``Wattfare`` and ``AsyncWattfare``. They run the flows of :mod:`.calls`.
Each sync method has an async version."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from . import calls
from .calls import Call, Caller, LimitLike, Read, Send, Sleep, Timeout
from .error_responses import LetThrough
from .flow import Flow, InThread, run, run_async
from .handles import AsyncGrant, AsyncUser, Grant, User
from .offload import in_thread
from .openai_connections import OpenAIConnections
from .origins import FindAppCors, Origins
from .sessions import AccountLabelOption, RequestLimitOption, TokenRoute
from .transport import (
    AsyncHTTPClient,
    AsyncHTTPResponse,
    AsyncTransport,
    HTTPResponse,
    SyncHTTPClient,
    Transport,
    async_transport,
    hidden,
    running_loop,
    sync_transport,
)
from .turns import in_turn
from .types import CreatedSession, SessionRequest, UserId
from .users import CallFunction, ResolveUser
from .web import Request, Response

T = TypeVar("T")
C = TypeVar("C", bound="Wattfare | AsyncWattfare")
TransportT = TypeVar("TransportT", Transport, AsyncTransport)
HTTPClientT = TypeVar("HTTPClientT")


class _Runner(Generic[TransportT]):
    """Makes the calls of a client.

    Attributes:
        caller: the service and the secret key.
        transport: the connections.
        openai: the connections of openai clients.
    """

    def __init__(self, caller: Caller, transport: TransportT) -> None:
        self.caller = caller
        self.transport = transport
        self.openai = OpenAIConnections(caller)

    def in_request(self) -> Self:
        """A copy for calls inside a request to the app. It shares the connections."""
        copied = copy.copy(self)
        copied.caller = self.caller.in_request()
        return copied


class SyncRunner(_Runner[Transport]):
    """Makes the calls of a :class:`Wattfare`."""

    def fetch(self, call: Call[T]) -> T:
        return self.run(self.caller.fetch(call))

    def disconnect(self, user_id: str) -> None:
        self.run(self.caller.disconnect(user_id))

    def open(self, call: Call[Any]) -> HTTPResponse:
        return self.run(self.caller.open(call))

    def run(self, flow: Flow[T]) -> T:
        return run(flow, self.perform)

    def perform(self, command: Any) -> Any:
        kind = command.__class__  # a comparison is faster than `match`
        if kind is Send:
            return self.transport.send(command.request)
        if kind is Read:
            return command.answer.read()
        if kind is CallFunction:
            return command.function.call(*command.args)
        if kind is InThread:
            return command.function(*command.args)
        if kind is Sleep:
            return time.sleep(command.seconds)
        raise TypeError(f"unknown command {command!r}")


class AsyncRunner(_Runner[AsyncTransport]):
    """Makes the calls of an :class:`AsyncWattfare`."""

    async def fetch(self, call: Call[T]) -> T:
        return await self.run(self.caller.fetch(call))

    async def disconnect(self, user_id: str) -> None:
        await self.run(self.caller.disconnect(user_id))

    async def open(self, call: Call[Any]) -> AsyncHTTPResponse:
        return await self.run(self.caller.open(call))

    async def run(self, flow: Flow[T]) -> T:
        running_loop()  # report a missing event loop before any other error
        return await run_async(flow, self.perform)

    def perform(self, command: Any) -> Awaitable[Any]:
        kind = command.__class__
        if kind is Send:
            return self.transport.send(command.request)
        if kind is Read:
            return command.answer.read()
        if kind is CallFunction:
            return command.function.call_async(*command.args)
        if kind is InThread:
            if command.payer is None:
                return in_thread(command.function, *command.args)
            return in_turn(command.payer, command.function, *command.args)
        if kind is Sleep:
            return asyncio.sleep(command.seconds)
        raise TypeError(f"unknown command {command!r}")


RunnerT = TypeVar("RunnerT", bound="SyncRunner | AsyncRunner")


class _Client(Generic[TransportT, HTTPClientT, RunnerT]):
    """The base of both clients."""

    _make_transport: Callable[[HTTPClientT | None], TransportT]
    _make_runner: Callable[[Caller, TransportT], RunnerT]

    def __init__(
        self,
        secret_key: str | None = None,
        *,
        base_url: str | None = None,
        http_client: HTTPClientT | None = None,
        timeout: Timeout | float | None = None,
        max_retries: int = 2,
    ) -> None:
        """
        Args:
            secret_key: ``sk_live_…`` or ``sk_test_…``. Defaults to ``WATTFARE_SECRET_KEY``.
            base_url: the service's address. Defaults to ``WATTFARE_BASE_URL``, then to the address
                of Wattfare's own service.
            http_client: the HTTP client for all calls, or a function that creates one. See
                ``docs/client.md``. If you pass a client, you must close it.
            timeout: a :class:`Timeout`, or a number of seconds for its ``connect`` and ``read``.
            max_retries: the maximum number of retries of a call that is safe to repeat.

        Raises:
            WattfareAuthError: the secret key is missing or invalid.
            TypeError: ``http_client`` is not a supported client.
        """
        if secret_key is None:
            secret_key = os.environ.get("WATTFARE_SECRET_KEY")
        secret_key = hidden(secret_key)
        if base_url is None:
            base_url = os.environ.get("WATTFARE_BASE_URL", "").strip() or calls.DEFAULT_BASE_URL
        if timeout is None:
            timeout = Timeout()
        elif not isinstance(timeout, Timeout):
            timeout = Timeout(connect=timeout, read=timeout)
        caller = Caller(secret_key, base_url, timeout, max_retries)
        self._runner = self._make_runner(caller, self._make_transport(http_client))

    @property
    def base_url(self) -> str:
        """The service's address, without the ``/api/v1``."""
        return self._runner.caller.base_url

    def __repr__(self) -> str:
        # A traceback may show an object whose `__init__` has failed.
        runner = getattr(self, "_runner", None)
        return f"{type(self).__name__}(base_url={runner and runner.caller.base_url!r})"


class Wattfare(_Client[Transport, SyncHTTPClient, SyncRunner]):
    """The client for an app's backend. Use it in a ``with`` block, or close it. Threads and forked
    workers can share one client."""

    _make_transport = staticmethod(sync_transport)
    _make_runner = SyncRunner

    def user(self, user_id: UserId) -> User:
        """A handle for one user. Sends no request.

        Raises:
            WattfareError: ``invalid_request``; the id is invalid.
        """
        return User(self._runner, user_id)

    def grant(self, grant_token: str) -> Grant:
        """A handle for a one-time grant. Sends no request.

        Raises:
            WattfareGrantError: the token is invalid.
        """
        grant_token = hidden(grant_token)
        return Grant(self._runner, grant_token)

    def create_session(
        self,
        user_id: UserId,
        request_limit: LimitLike | SessionRequest = None,
        *,
        account_label: str | None = None,
    ) -> CreatedSession:
        """Create a session token for this user's browser.

        Args:
            user_id: the app's own id of the user.
            request_limit: the monthly cap to ask for, in USD. If None, the payer chooses the cap.
            account_label: the name of the user's account at the app, such as ``"ann@example.com"``.
                The service shows it to the payer. If the service refuses labels, the session is
                created without one.

        Raises:
            WattfareError: the call failed. For example, the code is ``invalid_request`` for an
                invalid cap.
        """
        return self._runner.run(
            self._runner.caller.create_session(user_id, request_limit, account_label)
        )

    def session_handler(
        self,
        resolve_user: ResolveUser,
        request_limit: RequestLimitOption = None,
        *,
        account_label: AccountLabelOption = None,
        allowed_origins: Iterable[str] = (),
        let_through: LetThrough = (),
        app_cors: FindAppCors | None = None,
    ) -> Callable[[Request], Response]:
        """Create a token route for any framework. The result is a function that takes a
        :class:`Request` and returns a :class:`Response`. It raises only the exceptions in
        ``let_through``.

        Args:
            resolve_user: returns the id of the user who makes the request. If it returns None, the
                response is a 401.
            request_limit: the monthly cap to ask for, in USD, or a function of the request that
                returns it.
            account_label: the name of the user's account at the app, or a function of the request
                that returns it.
            allowed_origins: origins of other sites whose pages may call the route.
            let_through: exceptions of the functions above that your framework converts to
                responses.
            app_cors: returns what the app's own CORS middleware allows. Only adapters use it.
        """
        origins = Origins(allowed_origins, app_cors)
        token_route = TokenRoute(
            self._runner.caller, resolve_user, request_limit, account_label, origins
        )

        def handler(request: Request) -> Response:
            return self._runner.run(token_route.respond(request, let_through))

        return handler

    def close(self) -> None:
        """Close the client's own connections. A later call opens new ones."""
        self._runner.transport.close()
        self._runner.openai.shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncWattfare(_Client[AsyncTransport, AsyncHTTPClient, AsyncRunner]):
    """:class:`Wattfare` for asyncio. Use it in an ``async with`` block, or call ``await
    client.aclose()``. Each event loop has its own connections."""

    _make_transport = staticmethod(async_transport)
    _make_runner = AsyncRunner

    def user(self, user_id: UserId) -> AsyncUser:
        """See :meth:`Wattfare.user`."""
        return AsyncUser(self._runner, user_id)

    def grant(self, grant_token: str) -> AsyncGrant:
        """See :meth:`Wattfare.grant`."""
        grant_token = hidden(grant_token)
        return AsyncGrant(self._runner, grant_token)

    async def create_session(
        self,
        user_id: UserId,
        request_limit: LimitLike | SessionRequest = None,
        *,
        account_label: str | None = None,
    ) -> CreatedSession:
        """See :meth:`Wattfare.create_session`."""
        return await self._runner.run(
            self._runner.caller.create_session(user_id, request_limit, account_label)
        )

    def session_handler(
        self,
        resolve_user: ResolveUser,
        request_limit: RequestLimitOption = None,
        *,
        account_label: AccountLabelOption = None,
        allowed_origins: Iterable[str] = (),
        let_through: LetThrough = (),
        app_cors: FindAppCors | None = None,
    ) -> Callable[[Request], Awaitable[Response]]:
        """See :meth:`Wattfare.session_handler`. The returned function is async."""
        origins = Origins(allowed_origins, app_cors)
        token_route = TokenRoute(
            self._runner.caller, resolve_user, request_limit, account_label, origins
        )

        async def handler(request: Request) -> Response:
            return await self._runner.run(token_route.respond(request, let_through))

        return handler

    async def aclose(self) -> None:
        """Close the client's own connections of this event loop. A later call opens new ones."""
        await self._runner.transport.close()
        await self._runner.openai.shared_async.close()
        self._runner.openai.shared.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def client_for(
    kind: type[C],
    client: Wattfare | AsyncWattfare | None,
    secret_key: str | None = None,
    base_url: str | None = None,
) -> tuple[C, bool]:
    """Return a client of this kind, and True if the caller must close it. A ``client`` of this kind
    is returned unchanged. For a ``client`` of the other kind, create a client with the same
    settings.

    Raises:
        TypeError: ``client`` is not a client, or it was passed together with a key or a URL.
        WattfareAuthError: there is no secret key.
    """
    if client is None:
        return kind(secret_key, base_url=base_url), True
    if not isinstance(client, (Wattfare, AsyncWattfare)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"client must be a Wattfare or an AsyncWattfare, not {type(client).__name__}"
        )
    if secret_key is not None or base_url is not None:
        raise TypeError("pass client=, or secret_key= and base_url=, not both")
    if isinstance(client, kind):
        return client, False
    caller = runner_of(client).caller
    sibling = kind(
        caller.secret_key,
        base_url=caller.base_url,
        timeout=caller.timeout,
        max_retries=caller.max_retries,
    )
    return sibling, True


def runner_of(client: Wattfare | AsyncWattfare) -> Any:
    """The object that makes the calls of a client. For other modules of this package."""
    return client._runner  # pyright: ignore[reportPrivateUsage]


def in_request(client: C) -> C:
    """A copy of the client for calls inside a request to the app. It shares the connections."""
    copied = copy.copy(client)
    vars(copied)["_runner"] = runner_of(client).in_request()
    return copied
