"""Drives the gate for an ASGI app (asyncio)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from functools import cached_property
from typing import Any

from .. import calls
from ..client import AsyncWattfare, Wattfare, client_for
from ..errors import WattfareError
from ..flow import run_async
from ..handles import AsyncUser, User
from ..receiving import ClientGoneError, Receive, UntilDisconnect, read_body
from ..web import Headers, Request, Response
from .gate import Begun, ReadBody, cut_short
from .relay import Record, Relay
from .wrap import WattfareMiddleware

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class WattfareASGIMiddleware(WattfareMiddleware):
    """:class:`WattfareMiddleware` around an ASGI app."""

    _client_kind = AsyncWattfare
    _client: AsyncWattfare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:  # `get` takes longer
            path, root_path = scope["path"], scope["root_path"]
        except KeyError:  # few servers leave the latter out; a lifespan has neither
            path, root_path = scope.get("path", ""), scope.get("root_path", "")
        if root_path:
            path = below_mount(path, root_path)
        if path in self._routes and scope["type"] == "http":
            await self.serve(path, scope, receive, send)
            return
        if not path and scope["type"] == "lifespan":
            send = self._closing(send)
        await self.app(scope, receive, send)

    async def user(self, scope: Scope) -> AsyncUser:
        """The budget of the user who makes this request, for an app's own use.

        Raises:
            WattfareAuthError: nobody is signed in.
        """
        flow = self._gate.identify(request_of(scope))
        return self._client.user(await self._client._run(flow))

    def user_sync(self, user: AsyncUser) -> User:
        """The same user's budget, for synchronous code in a thread."""
        return self._sync_client.user(user.id)

    @cached_property
    def _sync_client(self) -> Wattfare:
        return client_for(Wattfare, self._client)[0]

    async def aclose(self) -> None:
        """Close the connections that are our own. A server does it with the app's lifespan."""
        if "_sync_client" in self.__dict__:
            self._sync_client.close()
        if self._owns_client:
            await self._client.aclose()

    def _closing(self, send: Send) -> Send:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        return send_and_close

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of our paths."""
        exchange = _Exchange(self, request_of(scope, path), receive, send)
        await exchange.run()


class _Exchange:
    """One request to one of our paths, and its answer."""

    def __init__(
        self, middleware: WattfareASGIMiddleware, request: Request, receive: Receive, send: Send
    ) -> None:
        self._gate = middleware._gate
        self._client = middleware._client
        self._request = request
        self._receive = receive
        self._send = send
        self._record: Record | None = None
        self._gone = UntilDisconnect(receive)

    async def run(self) -> None:
        try:
            async with self._gone:
                await self._answer()
        finally:
            if self._record is not None:
                await run_async(self._gate.finished(self._record), self._client._perform)

    async def _answer(self) -> None:
        reply = await run_async(self._gate.answer(self._request), self._perform)
        if isinstance(reply, Relay):
            try:
                await self._relay(reply)
            finally:
                await reply.answer.close()
        else:
            await self._respond(reply)

    async def _perform(self, need: Any) -> Any:
        match need:
            case ReadBody():
                return await read_body(self._receive, need.limit, cut_short)
            case Begun():
                self._record = need.record
                return None
            case calls.Send() | calls.Read():
                # We wait for the service now, and want to know when nobody waits for us.
                self._gone.watch()
            case _:
                pass
        return await self._client._perform(need)

    async def _relay(self, relay: Relay) -> None:
        await self._tell(_start(relay.status, relay.headers))
        try:
            async with aclosing(relay.answer.chunks()) as chunks:
                async for chunk in chunks:
                    if passed := relay.feed(chunk):
                        await self._tell(_body(passed, more=True))
            last = relay.end()
        except WattfareError as error:
            last = relay.broken(error.message.rstrip("."))
        await self._tell(_body(last, more=False))

    async def _respond(self, response: Response) -> None:
        await self._tell(_start(response.status, response.headers))
        await self._tell(_body(response.body, more=False))

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # as the specification has it for a client that is gone
            raise ClientGoneError from None


def _start(status: int, headers: dict[str, str]) -> Message:
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": fields}


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def below_mount(path: str, root_path: str) -> str:
    """The path below the point where the app is mounted: ``root_path`` stands inside ``path``
    on the servers that follow the ASGI specification, and does not on those that do not."""
    if path.startswith(root_path):
        rest = path[len(root_path) :]
        if rest.startswith("/") or not rest:
            return rest
    return path


def request_of(scope: Scope, path: str | None = None) -> Request:
    """The neutral request that a scope stands for; ``path``: below the mount, where known."""
    if path is None:
        path = below_mount(scope["path"], scope.get("root_path", ""))
    client = scope.get("client")
    return Request(
        scope.get("method", "GET"),  # a websocket has none, and opens with a GET
        path,
        Headers([(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]),
        query_string=scope.get("query_string", b"").decode("latin-1"),
        client=client[0] if client else None,
        raw=scope,
        interface="asgi",
    )
