"""The middleware for ASGI apps, which is a driver of the gate. It answers its own paths on asyncio,
and passes all other requests to the app unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import cached_property, partial
from inspect import isclass, isroutine
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from .. import calls
from ..client import AsyncRunner, AsyncWattfare, Wattfare, client_for, in_request
from ..current import CurrentRequest, around_asgi
from ..errors import WattfareError
from ..flow import run_async
from ..handles import AsyncUser, User
from ..headers import Headers
from ..heartbeat import Heartbeat
from ..offload import LARGE_BODY
from ..receiving import ClientGoneError, Message, Receive, UntilDisconnect, read_body
from ..transport.base import LoopPool
from ..transport.idle import NEVER, IdleTimer
from ..users import CallFunction
from ..web import Request, Response
from .answers import AsyncAnswer
from .base import Middleware
from .gate import Gate, ReadBody, cut_short, is_json
from .interface import single_callable
from .options import Options, check_options, hide_secret_key
from .relay import Record, Relay

if TYPE_CHECKING:
    # For a type checker, `WattfareMiddleware(app)` returns one of its subclasses.
    from .factory import WattfareMiddleware as _Base
else:
    _Base = Middleware

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class WattfareASGIMiddleware(_Base):
    """:class:`~wattfare_mw.WattfareMiddleware` around an ASGI app."""

    _client_kind = AsyncWattfare
    _client: AsyncWattfare
    _runner: AsyncRunner

    if TYPE_CHECKING:

        def __new__(cls, *_args: Any, **_options: Any) -> Self: ...

    def __init__(
        self, app: Any, *, interface: Literal["auto", "asgi"] = "asgi", **options: Unpack[Options]
    ) -> None:
        hide_secret_key(options)
        check_options(options)
        super().__init__(single_callable(app), **options)
        seconds = self._gate.heartbeat
        self._heartbeats = None if seconds is None else _heartbeats(seconds)

    def _show_interface(self) -> None:
        # Some servers detect an ASGI app by its attribute `__call__`, which must be a coroutine
        # function. A call of the middleware uses the method of the class instead.
        vars(self)["__call__"] = self._call

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Most requests are for the app's own paths, and take only these steps. The result is the
        # app's own coroutine, without a wrapper.
        app, first, last = self._app_and_range
        try:
            if last >= scope["path"] >= first or scope["root_path"]:
                app = self._app_for(scope)
        except KeyError:  # some servers leave out root_path, and a lifespan has no path
            app = self._app_for(scope)
        return app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        await type(self).__call__(self, scope, receive, send)

    def _app_for(self, scope: Scope) -> ASGIApp:
        """The app that answers this request: the wrapped app, or our own."""
        kind = scope["type"]
        if kind == "http":
            path = below_mount(scope["path"], scope.get("root_path", ""))
            if path in self._routes:
                return partial(self.serve, path)
            if self._gate.below(path) is not None:
                return partial(self._serve_unless_app, path)
        elif kind == "lifespan":
            return self._lifespan
        return self._called_app

    async def _serve_unless_app(
        self, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Call the app first. If it has no route for the path, send our own answer."""
        is_ours = False

        async def watch_send(message: Message) -> None:
            nonlocal is_ours
            if message["type"] == "http.response.start":
                is_ours = message["status"] in (404, 405) and not _has_route(scope, message)
            if not is_ours:
                await send(message)

        await self._called_app(scope, receive, watch_send)
        if is_ours:
            await self.serve(path, scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        await self.app(scope, receive, send_and_close)

    async def user(self, scope: Scope) -> AsyncUser:
        """A handle for the user who makes this request, for the app's own code.

        Raises:
            WattfareAuthError: no user is signed in.
        """
        return await self.user_of(self.request_from(scope))

    async def user_of(self, request: Request) -> AsyncUser:
        """:meth:`user`, for a framework with its own requests."""
        return self._client.user(await self._runner.run(self._gate.identify(request)))

    def request_from(self, raw: Any) -> Request:
        return request_from_scope(raw)

    def user_sync(self, user: AsyncUser) -> User:
        """A handle for the same user, for sync code in a thread."""
        return self._sync_client.user(user.id)

    @cached_property
    def _sync_client(self) -> Wattfare:
        return in_request(client_for(Wattfare, self._client)[0])

    @property
    def _async_client(self) -> AsyncWattfare:
        return self._client

    def current_request(self, request: Request | Callable[[], Request]) -> CurrentRequest:
        return self.current_request_class(self._driver, request, asyncio.get_running_loop())

    def _with_current_user(self, app: ASGIApp) -> ASGIApp:
        return around_asgi(self._driver, app)

    async def aclose(self) -> None:
        """Close our own connections. The shutdown of the app's lifespan does this, too."""
        if "_sync_client" in self.__dict__:
            self._sync_client.close()
        if self._owns_client:
            await self._client.aclose()

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        request = request_from_scope(scope, path)
        try:
            exchange = _Exchange(self._gate, self._runner, receive, send, self._heartbeats)
        except WattfareError as error:  # there is no event loop of asyncio
            await _refuse(self._gate, request, send, error)
        else:
            await exchange.run(request)

    async def respond(
        self, request: Request, body: AsyncIterable[bytes] | Callable[[int], Awaitable[bytes]]
    ) -> AsyncAnswer:
        """Answer a request to one of our paths, for a framework with its own requests. The
        framework must cancel this call if the client leaves.

        Args:
            request: the framework's request as a :class:`wattfare_mw.Request`. Its path must be one
                of ours.
            body: an iterator over the pieces of the body, or a function that reads at most the
                given number of bytes. If the client leaves before the end, it must raise OSError.
        """
        record = Record()

        async def read(command: ReadBody) -> bytes:
            if not callable(body):
                receive = _receive_from(body)
                return await read_body(receive, command.limit, cut_short, command.claim)
            if command.claim is None:
                return await body(command.limit)
            with command.claim.while_reading():
                whole = await body(command.limit)
            command.claim.grow(len(whole))
            return whole

        def perform(command: Any) -> Awaitable[Any]:
            return read(command) if type(command) is ReadBody else self._runner.perform(command)

        try:
            reply = await run_async(self._gate.answer(request, record), perform)
            if isinstance(reply, Relay):
                stream = _Stream(reply, self._gate.heartbeat, self._finish)
                return AsyncAnswer(reply.status, reply.headers, stream, stream.aclose)
        except BaseException:
            try:
                await self._finish(record)
            finally:
                record.release()
            raise
        await self._finish(record)
        close = None if record.slot is None else record.release
        return AsyncAnswer(reply.status, reply.headers, reply.body, close)

    async def _finish(self, record: Record) -> None:
        if record.begun:
            await run_async(self._gate.finished(record), self._runner.perform)


class WattfareAsyncAdapter(WattfareASGIMiddleware):
    """The base of an adapter for an async framework with its own requests.

    The options are those of :class:`~wattfare_mw.WattfareMiddleware`.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(None, **options)


def _receive_from(pieces: AsyncIterable[bytes]) -> Receive:
    """An ASGI ``receive`` for a body in pieces."""
    iterator = aiter(pieces)

    async def receive() -> Message:
        try:
            piece = await anext(iterator, None)
        except OSError:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    return receive


def _heartbeats(seconds: float) -> LoopPool[IdleTimer]:
    return LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), seconds))


async def _refuse(gate: Gate, request: Request, send: Send, error: WattfareError) -> None:
    """Answer with this error, by raising it at the first command of the gate."""

    async def refuse(_command: Any) -> None:
        raise error

    reply = await run_async(gate.answer(request, Record()), refuse)
    await send(_start(reply.status, reply.headers))
    await send({"type": "http.response.body", "body": getattr(reply, "body", b"")})


class _Exchange:
    """A request to one of our paths, and its answer."""

    __slots__ = ("_gate", "_gone", "_heartbeats", "_receive", "_runner", "_send")

    def __init__(
        self,
        gate: Gate,
        runner: AsyncRunner,
        receive: Receive,
        send: Send,
        heartbeats: LoopPool[IdleTimer] | None,
    ) -> None:
        self._gate = gate
        self._runner = runner
        self._receive = receive
        self._send = send
        self._heartbeats = heartbeats
        self._gone = UntilDisconnect(receive)

    async def run(self, request: Request) -> None:
        gate, record = self._gate, Record()
        try:
            async with self._gone:
                reply = await run_async(gate.answer(request, record), self._perform)
                if isinstance(reply, Relay):
                    await self._relay(reply)
                else:
                    await self._respond(reply)
        finally:
            try:
                if record.begun:
                    await run_async(gate.finished(record), self._runner.perform)
            finally:
                record.release()

    def _perform(self, command: Any) -> Awaitable[Any]:
        kind = command.__class__
        if kind is ReadBody:
            gone = self._gone
            return read_body(gone.receive, command.limit, cut_short, command.claim, gone)
        if kind is CallFunction:
            # The app's function may hang.
            return self._gone.during(self._runner.perform(command))
        if kind is calls.Send or kind is calls.Read:
            # While we wait for the service, the client may leave, so watch it.
            self._gone.watch()
        return self._runner.perform(command)

    async def _respond(self, response: Response) -> None:
        send, body = self._send, response.body
        try:
            await send(_start(response.status, response.headers))
            if len(body) > LARGE_BODY:
                # A server accepts this body at once, but accepts the next message only after the
                # client has read the body. So while the answer is in memory, the call counts
                # towards the limit of concurrent calls.
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
            await send({"type": "http.response.body", "body": body, "more_body": False})
        except OSError:  # by the specification, the client has left
            raise ClientGoneError from None

    async def _relay(self, relay: Relay) -> None:
        send, answer, feed = self._send, relay.answer, relay.feed
        heartbeat = None
        try:
            await self._try_send(_start(relay.status, relay.headers))
            heartbeat = self._heartbeat(relay)
            try:
                while chunk := await answer.read_some():
                    if passed := feed(chunk):
                        if heartbeat is not None:
                            heartbeat.since = NEVER
                            if heartbeat.sending is not None:
                                await heartbeat.sent()
                        try:
                            await send(
                                {"type": "http.response.body", "body": passed, "more_body": True}
                            )
                        except OSError:
                            raise ClientGoneError from None
                        if heartbeat is not None:
                            heartbeat.since = heartbeat.now()
                    else:  # many dropped comments must not block other tasks
                        await asyncio.sleep(0)
                last = relay.end()
            except WattfareError as error:
                last = relay.broken(error.message.rstrip("."))
            if heartbeat is not None:
                await heartbeat.stop()
            await self._try_send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            if heartbeat is not None:
                heartbeat.close()
            await answer.close()

    def _heartbeat(self, relay: Relay) -> Heartbeat | None:
        if self._heartbeats is None:
            return None

        async def send() -> None:
            comment = relay.heartbeat()
            await self._try_send({"type": "http.response.body", "body": comment, "more_body": True})

        return Heartbeat(self._heartbeats.get(), send)

    async def _try_send(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # by the specification, the client has left
            raise ClientGoneError from None


class _Stream:
    """A streamed answer, for a framework that reads it piece by piece. To stop the call to the
    service, close the stream or cancel the task that waits for a piece."""

    def __init__(
        self, relay: Relay, idle_limit: float | None, finish: Callable[[Record], Awaitable[None]]
    ) -> None:
        self._closed = False
        self._relay = relay
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._idle_limit = idle_limit
        self._reading: asyncio.Task[bytes] | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = b"" if self._ended else await self._next()
        except BaseException:
            await self.aclose()
            raise
        if piece:
            return piece
        await self.aclose()
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        relay = self._relay
        try:
            while chunk := await self._read():
                if passed := relay.feed(chunk):
                    return passed
                await asyncio.sleep(0)  # many comments must not block other tasks
            if chunk is None:
                return relay.heartbeat()
            last = relay.end()
        except WattfareError as error:
            last = relay.broken(error.message.rstrip("."))
        self._ended = True
        return last

    async def _read(self) -> bytes | None:
        """Read the next piece. None if a heartbeat is due."""
        if self._idle_limit is None:
            return await self._relay.answer.read_some()
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self._relay.answer.read_some())
        await asyncio.wait((reading,), timeout=self._idle_limit)
        if not reading.done():
            return None
        self._reading = None
        return reading.result()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = self._ended = True
        relay, reading = self._relay, self._reading
        try:
            if reading is not None:
                reading.cancel()
                await asyncio.wait((reading,))
                if not reading.cancelled():
                    reading.exception()  # asyncio logs an exception that is never retrieved
            await relay.answer.close()
            await self._finish(relay.record)
        finally:
            relay.record.release()

    def __del__(self) -> None:
        # If the framework fails, it may drop the answer without closing it.
        if self._closed:
            return
        self._relay.record.release()
        # This may run in another thread than the event loop's.
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(_close_soon, self._loop, self)


def _close_soon(loop: asyncio.AbstractEventLoop, stream: _Stream) -> None:
    task = loop.create_task(stream.aclose())
    _CLOSING.add(task)
    task.add_done_callback(_CLOSING.discard)


#: References to running tasks, because an event loop does not keep them alive.
_CLOSING: set[asyncio.Task[None]] = set()


def _has_route(scope: Scope, start: Message) -> bool:
    """True if this 404 or 405 comes from a route of the app, and not from its router."""
    if "router" in scope:
        # Starlette's router. A route sets `endpoint` to a function or a class. A mount sets it to
        # an app.
        endpoint = scope.get("endpoint")
        return isroutine(endpoint) or isclass(endpoint) or isinstance(endpoint, partial)
    if start["status"] == 405:  # a route for another method
        return True
    headers = Headers.of_response(start.get("headers") or ())
    return is_json(headers.common.get("content-type", ""))


def _start(status: int, headers: dict[str, str]) -> Message:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]  # all ASCII
    return {"type": "http.response.start", "status": status, "headers": fields}


def below_mount(path: str, root_path: str) -> str:
    """The path, relative to the point where the app is mounted. Servers that follow the ASGI
    specification include ``root_path`` in ``path``. Other servers do not."""
    if path.startswith(root_path):
        rest = path[len(root_path) :]
        if rest.startswith("/") or not rest:
            return rest
    return path


def request_from_scope(scope: Scope, path: str | None = None) -> Request:
    """The :class:`wattfare_mw.Request` of a scope. ``path``: the path relative to the mount point,
    if known."""
    if path is None:
        path = below_mount(scope["path"], scope.get("root_path", ""))
    client = scope.get("client")
    return Request(
        scope.get("method", "GET"),  # a websocket has no method, and starts with a GET
        path,
        Headers.of_scope(scope["headers"]),
        query_string=scope.get("query_string", b"").decode("latin-1"),
        client=client[0] if client else None,
        raw=scope,
        interface="asgi",
    )
