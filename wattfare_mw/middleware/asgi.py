"""Drives the gate for an ASGI app. Our own paths need asyncio; everything else passes as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cached_property, partial
from inspect import isclass, isroutine
from typing import Any

from .. import calls
from ..client import AsyncWattfare, Wattfare, client_for
from ..errors import WattfareError
from ..flow import run_async
from ..handles import AsyncUser, User
from ..headers import Headers
from ..heartbeat import Heartbeat
from ..offload import LARGE_BODY
from ..receiving import ClientGoneError, Receive, UntilDisconnect, read_body
from ..transport import running_loop
from ..transport.base import LoopPool
from ..transport.idle import NEVER, IdleTimer
from ..web import Request, Response
from .base import Middleware
from .gate import Gate, ReadBody, cut_short, is_json
from .interface import single_callable
from .options import hide_secret_key
from .relay import Record, Relay

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class WattfareASGIMiddleware(Middleware):
    """:class:`~wattfare_mw.WattfareMiddleware` around an ASGI app."""

    _client_kind = AsyncWattfare
    _client: AsyncWattfare

    def __init__(self, app: Any, **options: Any) -> None:
        hide_secret_key(options)
        super().__init__(single_callable(app), **options)
        seconds = self._gate.heartbeat
        self._heartbeats = None if seconds is None else _heartbeats(seconds)

    def _show_interface(self) -> None:
        # Whoever wants to know whether this is an ASGI app looks here for a coroutine function; to
        # call it, the interpreter looks at the class.
        self.__dict__["__call__"] = self._call

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Most requests are not ours, and this is all that they meet: the app's own coroutine is
        # handed on, with none around it.
        app, routes, below = self._app_and_paths
        try:
            path = scope["path"]
            if path in routes or path.startswith(below) or scope["root_path"]:
                app = self._app_for(scope)
        except KeyError:  # few servers leave out the latter; a lifespan has neither
            app = self._app_for(scope)
        return app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        await type(self).__call__(self, scope, receive, send)

    def _app_for(self, scope: Scope) -> ASGIApp:
        """Who answers this: the app, or we."""
        kind = scope["type"]
        if kind == "http":
            path = below_mount(scope["path"], scope.get("root_path", ""))
            if path in self._routes:
                return partial(self.serve, path)
            if self._gate.below(path) is not None:
                return partial(self._serve_unless_app, path)
        elif kind == "lifespan":
            return self._lifespan
        return self.app

    async def _serve_unless_app(
        self, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer what the app has no route for."""
        is_ours = False

        async def look(message: Message) -> None:
            nonlocal is_ours
            if message["type"] == "http.response.start":
                is_ours = message["status"] in (404, 405) and not _has_route(scope, message)
            if not is_ours:
                await send(message)

        await self.app(scope, receive, look)
        if is_ours:
            await self.serve(path, scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        await self.app(scope, receive, send_and_close)

    async def user(self, scope: Scope) -> AsyncUser:
        """The budget of the user who makes this request, for an app's own use.

        Raises:
            WattfareAuthError: nobody is signed in.
        """
        flow = self._gate.identify(request_from_scope(scope))
        return self._client.user(await self._client._run(flow))

    def user_sync(self, user: AsyncUser) -> User:
        """The same user's budget, for synchronous code in a thread."""
        return self._sync_client.user(user.id)

    @cached_property
    def _sync_client(self) -> Wattfare:
        return client_for(Wattfare, self._client)[0]._in_request()

    async def aclose(self) -> None:
        """Close the connections that are our own. A server does it with the app's lifespan."""
        if "_sync_client" in self.__dict__:
            self._sync_client.close()
        if self._owns_client:
            await self._client.aclose()

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        request = request_from_scope(scope, path)
        try:
            running_loop()
        except WattfareError as error:
            await _refuse(self._gate, request, send, error)
        else:
            exchange = _Exchange(self._gate, self._client, receive, send, self._heartbeats)
            await exchange.run(request)


def _heartbeats(seconds: float) -> LoopPool[IdleTimer]:
    return LoopPool(lambda: IdleTimer(asyncio.get_running_loop(), seconds))


async def _refuse(gate: Gate, request: Request, send: Send, error: WattfareError) -> None:
    """Answer with this error, as soon as the gate asks for anything."""

    async def refuse(_command: Any) -> None:
        raise error

    reply = await run_async(gate.answer(request, Record()), refuse)
    await send(_start(reply.status, reply.headers))
    await send({"type": "http.response.body", "body": getattr(reply, "body", b"")})


class _Exchange:
    """One request to one of our paths, and its answer."""

    __slots__ = ("_client", "_gate", "_gone", "_heartbeats", "_receive", "_send")

    def __init__(
        self,
        gate: Gate,
        client: AsyncWattfare,
        receive: Receive,
        send: Send,
        heartbeats: LoopPool[IdleTimer] | None,
    ) -> None:
        self._gate = gate
        self._client = client
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
                    await run_async(gate.finished(record), self._client._perform)
            finally:
                record.release()

    def _perform(self, command: Any) -> Awaitable[Any]:
        if isinstance(command, ReadBody):
            return read_body(self._receive, command.limit, cut_short, command.claim)
        if isinstance(command, (calls.Send, calls.Read)):
            # We wait for the service now, and want to know when nobody waits for us.
            self._gone.watch()
        return self._client._perform(command)

    async def _respond(self, response: Response) -> None:
        send, body = self._send, response.body
        try:
            await send(_start(response.status, response.headers))
            if len(body) > LARGE_BODY:
                # A server takes any body at once. It takes more only when its client has read
                # that, so the call counts as long as its answer is in memory.
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
            await send({"type": "http.response.body", "body": body, "more_body": False})
        except OSError:  # as the specification has it for a client that is gone
            raise ClientGoneError from None

    async def _relay(self, relay: Relay) -> None:
        send, answer, feed = self._send, relay.answer, relay.feed
        heartbeat = None
        try:
            await self._tell(_start(relay.status, relay.headers))
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
                    else:  # a flood of comments that are dropped must not hold up the others
                        await asyncio.sleep(0)
                last = relay.end()
            except WattfareError as error:
                last = relay.broken(error.message.rstrip("."))
            if heartbeat is not None:
                await heartbeat.stop()
            await self._tell({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            if heartbeat is not None:
                heartbeat.close()
            await answer.close()

    def _heartbeat(self, relay: Relay) -> Heartbeat | None:
        if self._heartbeats is None:
            return None

        async def send() -> None:
            comment = relay.heartbeat()
            await self._tell({"type": "http.response.body", "body": comment, "more_body": True})

        return Heartbeat(self._heartbeats.get(), send)

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # as the specification has it for a client that is gone
            raise ClientGoneError from None


def _has_route(scope: Scope, start: Message) -> bool:
    """Does this 404 or 405 come from a route of the app's?"""
    if "router" in scope:  # Starlette's, which says so; a mounted app is no route
        endpoint = scope.get("endpoint")
        return isroutine(endpoint) or isclass(endpoint) or isinstance(endpoint, partial)
    if start["status"] == 405:  # of a route that takes another method
        return True
    headers = Headers.of_response(start.get("headers") or ())
    return is_json(headers.common.get("content-type", ""))


def _start(status: int, headers: dict[str, str]) -> Message:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]  # all are ASCII
    return {"type": "http.response.start", "status": status, "headers": fields}


def below_mount(path: str, root_path: str) -> str:
    """The path below the point where the app is mounted: ``root_path`` stands inside ``path``
    on the servers that follow the ASGI specification, and does not on those that do not."""
    if path.startswith(root_path):
        rest = path[len(root_path) :]
        if rest.startswith("/") or not rest:
            return rest
    return path


def request_from_scope(scope: Scope, path: str | None = None) -> Request:
    """The neutral request that a scope stands for; ``path``: below the mount, where known."""
    if path is None:
        path = below_mount(scope["path"], scope.get("root_path", ""))
    client = scope.get("client")
    return Request(
        scope.get("method", "GET"),  # a websocket has none, and opens with a GET
        path,
        Headers.of_scope(scope["headers"]),
        query_string=scope.get("query_string", b"").decode("latin-1"),
        client=client[0] if client else None,
        raw=scope,
        interface="asgi",
    )
