"""Private: ``current_user`` and ``current_async_user``, the user of the current request.

The middleware puts a :class:`CurrentRequest` for each request into a context variable. Tasks, and
threads that copy the context, see only their own request. A CurrentRequest calls ``resolve_user``
when the user is first needed. After the request has ended, it has no user, so code that outlives
the request cannot bill the user.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from .calls import Payer, payer_of
from .client import AsyncRunner, AsyncWattfare, SyncRunner, Wattfare, runner_of
from .errors import WattfareCurrentUserError
from .flow import Flow, run, run_async
from .handles import AsyncUser, User
from .types import ConnectionStatus
from .users import CallFunction

T = TypeVar("T")

_current: ContextVar[CurrentRequest | None] = ContextVar("wattfare_current", default=None)
#: Protects the start of a user lookup and the end of a request. It is reentrant, because a garbage
#: collection while the lock is held can end another request.
_lock = threading.RLock()


@dataclass(eq=False, slots=True)
class Driver:
    """The part of the middleware that a CurrentRequest uses.

    Attributes:
        identify: the flow that finds the id of the user who makes a request.
        context_of: returns the context in which to call ``resolve_user`` under WSGI. None for the
            current context.
        sync_client: the client of ``current_user``.
        async_client: the client of ``current_async_user``.
    """

    identify: Callable[[Any], Flow[str]]
    context_of: Callable[[CurrentRequest], Context | None]
    sync_client: Callable[[], Wattfare]
    async_client: Callable[[], AsyncWattfare]


class _InterruptedError(Exception):
    """The caller of ``resolve_user`` was interrupted. Another caller must call it again."""


class CurrentRequest:
    """A request to an app. Its user is the current user until the request ends.

    Args:
        driver: the middleware.
        raw: a scope, an environ, a :class:`wattfare_mw.Request`, or a function that returns one of
            these.
        loop: the event loop of the request, if any.

    Attributes:
        context: a copy of the context with the framework's variables, which ``resolve_user`` may
            need. None if the adapter has not saved one.
        has_ended: True if the request has ended. From then on, there is no current user.
    """

    __slots__ = ("_driver", "_loop", "_user_id", "context", "has_ended", "raw")

    def __init__(
        self, driver: Driver, raw: Any, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._driver: Driver | None = driver
        self._loop = loop
        self._user_id: Future[str] | None = None
        self.raw = raw
        self.context: Context | None = None
        self.has_ended = False

    # -- for drivers and adapters

    @classmethod
    def of(cls, driver: Driver) -> CurrentRequest | None:
        """The current request, if it belongs to this middleware."""
        request = _current.get()
        return request if request is not None and request._driver is driver else None

    @contextmanager
    def active(self) -> Generator[None]:
        """A context manager. The code in its block belongs to the request, but the request does not
        end with the block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def end(self) -> None:
        """End the request. Call this when the response is complete, or if there will be no
        response."""
        with _lock:
            self.has_ended = True
            asked, self._user_id = self._user_id, None
            # A long-running task keeps this object alive, so release what it references.
            self._driver = self._loop = self.raw = self.context = None
        if asked is not None:
            _settle(asked, error=_ended())

    def iterate(self, body: Iterable[T]) -> Iterator[T]:
        """Wrap a streamed body, so that the code that creates it belongs to the request. The
        request ends with the body.

        The server may read the body in another thread, and may read other bodies in between.
        """
        return _Body(self, body)

    async def iterate_async(self, body: AsyncIterable[T]) -> AsyncGenerator[T]:
        """:meth:`iterate`, for an async body."""
        parts = aiter(body)
        try:
            while True:
                with self.active():
                    try:
                        part = await anext(parts)
                    except StopAsyncIteration:
                        return
                yield part
        finally:
            try:
                aclose = getattr(parts, "aclose", None)
                if aclose is not None:
                    with self.active():
                        await aclose()
            finally:
                self.end()

    # -- the user

    @property
    def driver(self) -> Driver:
        """The middleware.

        Raises:
            WattfareCurrentUserError: the request has ended.
        """
        driver = self._driver
        if driver is None:
            raise _ended()
        return driver

    def user_id(self) -> str:
        """The user's id. The first caller runs ``resolve_user``, and other callers wait for its
        result.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: the request has ended, or waiting would block the event loop
                that computes the result.
        """
        while True:
            asked, is_first = self._asked()
            if is_first:
                self._ask(asked)
            elif not asked.done() and self._is_on_loop():
                raise _would_block()
            with suppress(_InterruptedError):
                return asked.result()

    async def user_id_async(self) -> str:
        """:meth:`user_id`, in an event loop."""
        while True:
            asked, is_first = self._asked()
            if is_first:
                if self._loop is None:
                    self._ask(asked)
                else:
                    self._ask_on_loop(asked, self._loop)
            with suppress(_InterruptedError):
                return asked.result() if asked.done() else await asyncio.wrap_future(asked)

    def _asked(self) -> tuple[Future[str], bool]:
        """The future of the user's id, and True if the caller must compute it."""
        with _lock:
            self.driver  # noqa: B018  # raises if the request has ended
            asked = self._user_id
            if asked is not None:
                return asked, False
            asked = self._user_id = Future()
            # Mark the future as running, so that the cancellation of one waiting task does not
            # cancel it for the others.
            asked.set_running_or_notify_cancel()
            return asked, True

    def _ask(self, asked: Future[str]) -> None:
        """Call ``resolve_user`` here, or on the request's event loop if it must run there."""
        try:
            user_id = run(self.driver.identify(self.raw), self._call)
        except _OnLoopError as error:
            self._ask_on_loop(asked, error.loop)
        except WattfareCurrentUserError:  # async code can still call it later
            self._forget(asked)
            raise
        except Exception as error:
            _settle(asked, error=error)
        except BaseException:
            self._forget(asked)
            raise
        else:
            _settle(asked, user_id)

    def _ask_on_loop(self, asked: Future[str], loop: asyncio.AbstractEventLoop) -> None:
        coroutine = self._answer(asked)
        try:
            if self._is_on_loop():
                task: Any = loop.create_task(coroutine)
            else:
                task = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except BaseException:  # the loop is closed
            coroutine.close()
            self._forget(asked)
            raise
        # Keep a reference to the task while it runs.
        asked.add_done_callback(lambda _asked: task)

    async def _answer(self, asked: Future[str]) -> None:
        _current.set(None)
        try:
            user_id = await run_async(self.driver.identify(self.raw), _call_async)
        except Exception as error:
            _settle(asked, error=error)
        except BaseException:
            self._forget(asked)
            raise
        else:
            _settle(asked, user_id)

    def _forget(self, asked: Future[str]) -> None:
        with _lock:
            if self._user_id is asked:
                self._user_id = None
        _settle(asked, error=_InterruptedError())

    def _call(self, command: CallFunction) -> Any:
        """Call ``resolve_user`` from sync code."""
        function, loop = command.function, self._loop
        if loop is None:
            context = self.driver.context_of(self)
            args = (function.call, *command.args)
            return _alone(*args) if context is None else context.run(_alone, *args)
        if function.is_async:
            raise _would_block() if self._is_on_loop() else _OnLoopError(loop)
        result = _alone(function.call_as_it_is, *command.args)
        if not inspect.isawaitable(result):
            return result
        if self._is_on_loop():
            if inspect.iscoroutine(result):
                result.close()
            raise _would_block()
        return asyncio.run_coroutine_threadsafe(_awaited(result), loop).result()

    def _is_on_loop(self) -> bool:
        """True if the caller runs on the request's event loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __repr__(self) -> str:
        return "CurrentRequest(ended)" if self.has_ended else "CurrentRequest()"


class _OnLoopError(Exception):
    """``resolve_user`` is async and must run on the request's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    # If `resolve_user` used the current user, it would wait for itself.
    token = _current.set(None)
    try:
        return function(*args)
    finally:
        _current.reset(token)


def _call_async(command: CallFunction) -> Any:
    return command.function.call_async(*command.args)


async def _awaited(result: Any) -> Any:
    _current.set(None)
    return await result


def _settle(asked: Future[str], user_id: str = "", *, error: Exception | None = None) -> None:
    with suppress(InvalidStateError):  # the request has ended
        if error is None:
            asked.set_result(user_id)
        else:
            asked.set_exception(error)


class _Body:
    """A streamed body under WSGI."""

    __slots__ = ("_body", "_is_closed", "_parts", "_request")

    def __init__(self, request: CurrentRequest, body: Iterable[Any]) -> None:
        self._request = request
        self._body = body
        self._parts: Iterator[Any] | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        token = _current.set(self._request)
        try:
            if self._parts is None:
                self._parts = iter(self._body)
            return next(self._parts)
        except BaseException:  # including StopIteration
            self._request.end()
            raise
        finally:
            _current.reset(token)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        token = _current.set(self._request)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._request.end()
            _current.reset(token)

    # If a server drops the body without closing it, the body's code must not run in the context of
    # another request.
    __del__ = close


# -- the two drivers


def around_asgi(driver: Driver, app: Any) -> Any:
    """The app, with a current user in each of its requests."""

    async def with_current_user(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        request = CurrentRequest(driver, scope, _loop_here())

        async def send_and_end(message: Any) -> None:
            await send(message)
            if message["type"] in _BODIES and not message.get("more_body", False):
                request.end()

        token = _current.set(request)
        try:
            await app(scope, receive, send_and_end)
        finally:
            request.end()
            _current.reset(token)

    return with_current_user


_BODIES = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})


def around_wsgi(driver: Driver, app: Any) -> Any:
    """The app, with a current user in each of its requests."""

    def with_current_user(environ: Any, start_response: Any) -> Any:
        request = CurrentRequest(driver, environ)
        token = _current.set(request)
        try:
            body = app(environ, start_response)
        except BaseException:
            request.end()
            raise
        finally:
            _current.reset(token)
        # For a list or a file, the server runs no more code of the app.
        if isinstance(body, (list, tuple)) or _is_file(environ, body):
            request.end()
            return body  # pyright: ignore[reportUnknownVariableType]
        return request.iterate(body)

    return with_current_user


def _is_file(environ: Any, body: Any) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # trio
        return None


# -- the handles


def _here() -> CurrentRequest:
    request = _current.get()
    if request is None:
        raise WattfareCurrentUserError(
            "There is no current user here. In a request, set current_user=True for the app's"
            " WattfareMiddleware. In a worker, in your own thread or in a script, pass a user"
            " explicitly: `user = client.user(user_id)`."
        )
    if request.has_ended:
        raise _ended()
    return request


def _ended() -> WattfareCurrentUserError:
    return WattfareCurrentUserError(
        "There is no current user here: the request that started this code has ended. For work"
        " after the response, get the user in the request with `user = current_user.resolve()`,"
        " and pass it on."
    )


def _would_block() -> WattfareCurrentUserError:
    return WattfareCurrentUserError(
        "current_user cannot be used here: it needs the result of `resolve_user`, which runs on"
        " the event loop that this code blocks. Use current_async_user in async code, or call this"
        " code in a thread (`await asyncio.to_thread(…)`)."
    )


class _CurrentPayer:
    """The payer of the current user's calls."""

    def __init__(self, request: Callable[[], CurrentRequest]) -> None:
        self._request = request

    def pays(self) -> Payer:
        return payer_of(self._request().user_id())

    async def pays_async(self) -> Payer:
        return payer_of(await self._request().user_id_async())

    def __repr__(self) -> str:
        return "current user"


class _SyncPayer(_CurrentPayer):
    @property
    def client(self) -> SyncRunner:
        return runner_of(self._request().driver.sync_client())

    def of_this_request(self) -> _SyncPayer:
        return self


class _AsyncPayer(_CurrentPayer):
    @property
    def client(self) -> AsyncRunner:
        return runner_of(self._request().driver.async_client())

    def of_this_request(self) -> _AsyncPayer:
        request = self._request()
        return _AsyncPayer(lambda: request)


class _Current:
    """The base of both handles. It looks up the current request for each operation."""

    _name: str
    _Payer: type[_CurrentPayer]

    def __init__(self) -> None:
        self._paid_by: Any = self._Payer(self._request)

    def _request(self) -> CurrentRequest:
        return _here()

    @property
    def id(self) -> str:
        """The app's own id of the user.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: there is no current request.
        """
        return self._request().user_id()

    def __reduce__(self) -> str:
        return self._name  # a copy is the same object

    def __repr__(self) -> str:
        return self._name


class CurrentUser(_Current, User):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The type of :data:`current_user`."""

    _name = "current_user"
    _Payer = _SyncPayer

    def resolve(self) -> User:
        """A handle for the user of this request. It also works after the request has ended.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: there is no current request.
        """
        request = self._request()
        client = request.driver.sync_client()
        return client.user(request.user_id())


class CurrentAsyncUser(_Current, AsyncUser):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The type of :data:`current_async_user`."""

    _name = "current_async_user"
    _Payer = _AsyncPayer

    async def resolve(self) -> AsyncUser:
        """See :meth:`CurrentUser.resolve`."""
        request = self._request()
        client = request.driver.async_client()
        return client.user(await request.user_id_async())

    async def status(self) -> ConnectionStatus:
        """See :meth:`User.status`."""
        return await (await self.resolve()).status()

    async def disconnect(self) -> None:
        """See :meth:`User.disconnect`."""
        await (await self.resolve()).disconnect()


current_user = CurrentUser()
"""The user of the current request: a :class:`~wattfare_mw.User` for sync code.

It needs the middleware option ``current_user=True``. You can create its models and openai clients
when the app is loaded. Each call bills the user of the request in which it is made. Outside of a
request, and after its end, a call raises a :class:`~wattfare_mw.WattfareCurrentUserError`.
"""

current_async_user = CurrentAsyncUser()
"""The user of the current request: an :class:`~wattfare_mw.AsyncUser`, for asyncio. See
:data:`current_user`."""
