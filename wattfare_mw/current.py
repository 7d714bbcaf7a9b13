"""``current_user`` and ``current_async_user``: the user who makes the request that runs.

The middleware gives each request a :class:`CurrentRequest` in a context variable. Tasks, and
threads that copy the context, see that one and no other. It asks who the user is when that is first
needed. After its end it gives no user, so that code which outlives a request bills nobody.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from typing import Any, Protocol, TypeVar

from .calls import Payer, payer_of
from .client import AsyncWattfare, Wattfare
from .errors import WattfareCurrentUserError
from .flow import Flow, run, run_async
from .handles import AsyncUser, User
from .types import ConnectionStatus
from .users import CallFunction

T = TypeVar("T")

_current: ContextVar[CurrentRequest | None] = ContextVar("wattfare_current", default=None)
#: Held for a moment, when a request begins to ask who its user is, and when it ends. A garbage
#: collection can end one request within the other's moment.
_lock = threading.RLock()


class Driver(Protocol):
    """What a request needs of its middleware."""

    def _identify(self, raw: Any) -> Flow[str]: ...
    @property
    def _sync_client(self) -> Any: ...
    @property
    def _async_client(self) -> Any: ...
    def _context_of(self, request: CurrentRequest) -> Context | None: ...


class _InterruptedError(Exception):
    """The code that asked ``resolve_user`` was stopped, so that another one must ask it."""


class CurrentRequest:
    """A request to an app, whose user is the current user until it ends.

    Args:
        driver: the middleware.
        raw: a scope, an environ, a neutral request, or a function that makes one.
        loop: the event loop that the request runs on, if any.

    Attributes:
        context: where ``resolve_user`` finds what its framework keeps of the request, if that is
            not the context of the code that first needs the user.
        has_ended: later code has no current user.
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
        """The request that runs here, if it is this middleware's."""
        request = _current.get()
        return request if request is not None and request._driver is driver else None

    @contextmanager
    def active(self) -> Generator[None]:
        """The code of this block is the request's. The request does not end with the block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def end(self) -> None:
        """The response is complete, or there will be none."""
        with _lock:
            self.has_ended = True
            asked, self._user_id = self._user_id, None
            # A task that goes on for long keeps this object.
            self._driver = self._loop = self.raw = self.context = None
        if asked is not None:
            _settle(asked, error=_ended())

    def iterate(self, body: Iterable[T]) -> Iterator[T]:
        """A streamed body, whose code is the request's. The request ends with it.

        The server may read it in another thread, and other bodies in between.
        """
        return _Body(self, body)

    async def iterate_async(self, body: AsyncIterable[T]) -> AsyncGenerator[T]:
        """:meth:`iterate`, for an asynchronous body."""
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

    # -- who the user is

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
        """The user's id. The first call asks ``resolve_user``; others wait for its answer.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: the request has ended, or to wait would block the event loop
                that has the answer.
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
        """The answer of ``resolve_user``, and whether the caller has to ask for it."""
        with _lock:
            self.driver  # noqa: B018  # raises if the request has ended
            asked = self._user_id
            if asked is not None:
                return asked, False
            asked = self._user_id = Future()
            # Who waits for it and is cancelled does not cancel it for the others.
            asked.set_running_or_notify_cancel()
            return asked, True

    def _ask(self, asked: Future[str]) -> None:
        """Ask here, or on the event loop if ``resolve_user`` needs it."""
        try:
            user_id = run(self.driver._identify(self.raw), self._call)
        except _OnLoopError as error:
            self._ask_on_loop(asked, error.loop)
        except WattfareCurrentUserError:  # in asynchronous code, it can be asked
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
        # Else nothing would refer to it while it runs.
        asked.add_done_callback(lambda _asked: task)

    async def _answer(self, asked: Future[str]) -> None:
        _current.set(None)
        try:
            user_id = await run_async(self.driver._identify(self.raw), _call_async)
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
        """Call ``resolve_user`` from synchronous code."""
        function, loop = command.function, self._loop
        if loop is None:
            context = self.driver._context_of(self)
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
        """Does the caller run on the event loop of the request?"""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __repr__(self) -> str:
        return "CurrentRequest(ended)" if self.has_ended else "CurrentRequest()"


class _OnLoopError(Exception):
    """``resolve_user`` is asynchronous, and has to run on the event loop of the request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    # A `resolve_user` that needs the current user would wait for itself.
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
        except BaseException:  # its end, too
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

    # If a server drops it, its code must not run in the context of another request.
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
        # Nothing of the app runs any more. A server sends a file in a way of its own.
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
            "There is no current user here: this code runs in no request of an app whose"
            " WattfareMiddleware has current_user=True. In a request, set current_user=True. In a"
            " worker, a thread of your own or a script, pass `user` explicitly:"
            " `user = client.user(user_id)`."
        )
    if request.has_ended:
        raise _ended()
    return request


def _ended() -> WattfareCurrentUserError:
    return WattfareCurrentUserError(
        "There is no current user here any more: the request in which this code began has ended."
        " Pass `user` explicitly to work that goes on after the response:"
        " `user = current_user.resolve()` in the request."
    )


def _would_block() -> WattfareCurrentUserError:
    return WattfareCurrentUserError(
        "current_user cannot wait here: `resolve_user` runs on the event loop that this code"
        " blocks. Use current_async_user in asynchronous code, or call this in a thread"
        " (`await asyncio.to_thread(…)`)."
    )


class _Current:
    """What both handles share: each question is answered by the request that runs."""

    _name: str

    def __init__(self) -> None:
        """Nothing is known before there is a request."""

    def _request(self) -> CurrentRequest:
        return _here()

    @property
    def id(self) -> str:
        """The app's own id of the user.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: no request runs here.
        """
        return self._request().user_id()

    def _pays(self) -> Payer:
        return payer_of(self.id)

    async def _pays_async(self) -> Payer:
        return payer_of(await self._request().user_id_async())

    def __reduce__(self) -> str:
        return self._name  # a copy is the same object

    def __repr__(self) -> str:
        return self._name


class CurrentUser(_Current, User):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The type of :data:`current_user`."""

    _name = "current_user"

    @property
    def _client(self) -> Wattfare:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._request().driver._sync_client

    def resolve(self) -> User:
        """The user of this request, as a handle that can be used after it has ended.

        Raises:
            WattfareAuthError: no user is signed in.
            WattfareCurrentUserError: no request runs here.
        """
        request = self._request()
        client = request.driver._sync_client
        return client.user(request.user_id())


class CurrentAsyncUser(_Current, AsyncUser):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The type of :data:`current_async_user`."""

    _name = "current_async_user"

    @property
    def _client(self) -> AsyncWattfare:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._request().driver._async_client

    def _of_this_request(self) -> AsyncUser:
        return _AsyncUserOf(self._request())

    async def resolve(self) -> AsyncUser:
        """See :meth:`CurrentUser.resolve`."""
        request = self._request()
        client = request.driver._async_client
        return client.user(await request.user_id_async())

    async def status(self) -> ConnectionStatus:
        """See :meth:`User.status`."""
        return await (await self.resolve()).status()

    async def disconnect(self) -> None:
        """See :meth:`User.disconnect`."""
        await (await self.resolve()).disconnect()


class _AsyncUserOf(CurrentAsyncUser):
    """The current user of one request, for what is read later."""

    def __init__(self, request: CurrentRequest) -> None:
        super().__init__()
        self._of = request

    def _request(self) -> CurrentRequest:
        return self._of


current_user = CurrentUser()
"""The user who makes the request that runs: a :class:`~wattfare_mw.User` for synchronous code.

It needs ``current_user=True`` of the middleware. A model or an openai client of it can be made when
the app is loaded, and bills the user of each request in which it is used. It raises a
:class:`~wattfare_mw.WattfareCurrentUserError` outside of a request and after its end.
"""

current_async_user = CurrentAsyncUser()
"""The user who makes the request that runs: an :class:`~wattfare_mw.AsyncUser`, for asyncio. See
:data:`current_user`."""
