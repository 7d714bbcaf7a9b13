"""Bare pass-throughs for ASGI, one for each client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import clients


class PassThrough:
    """Forwards each POST to the same path of the upstream."""

    def __init__(self, make_client: Callable[[], Any]) -> None:
        self._make_client = make_client
        self._client: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if self._client is None:
            self._client = self._make_client()
        await self.forward(clients.API + scope["path"], await read_body(receive), send)

    async def forward(self, url: str, body: bytes, send: Any) -> None:
        raise NotImplementedError


class OverAiohttp(PassThrough):
    async def forward(self, url: str, body: bytes, send: Any) -> None:
        async with self._client.post(url, data=body, headers=clients.HEADERS) as answer:
            await send(start(answer.status, answer.headers))
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class OverHttpx(PassThrough):
    async def forward(self, url: str, body: bytes, send: Any) -> None:
        request = self._client.build_request("POST", url, content=body, headers=clients.HEADERS)
        answer = await self._client.send(request, stream=True)
        try:
            await send(start(answer.status_code, answer.headers))
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await answer.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def lifespan(receive: Any, send: Any) -> None:
    """Accept the server's start and shutdown."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def read_body(receive: Any) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def start(status: int, headers: Any) -> dict[str, Any]:
    passed = [(n.encode(), headers[n].encode()) for n in clients.PASSED if n in headers]
    return {"type": "http.response.start", "status": status, "headers": passed}


def over_aiohttp() -> OverAiohttp:
    return OverAiohttp(clients.aiohttp_session)


def over_httpx() -> OverHttpx:
    return OverHttpx(clients.httpx_async_client)


def over_httpx2() -> OverHttpx:
    return OverHttpx(clients.httpx2_async_client)
