"""A Starlette app with the adapter, called as a server calls it."""

import asyncio
from typing import Any

from fake_service import fake_service
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from wattfare_starlette import add_wattfare, get_user


async def hello(request: Request) -> PlainTextResponse:
    user = await get_user(request)
    return PlainTextResponse((await user.model("wattfare/echo").generate("Say hello.")).text)


app = Starlette(routes=[Route("/hello", hello)])


async def get(path: str, query: bytes = b"") -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": []}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def main() -> None:
    assert await get("/hello", b"user=ann") == (200, b"Hello.")
    assert (await get("/hello"))[0] == 401
    assert (await get("/api/wattfare/status"))[0] == 401


with fake_service():
    add_wattfare(app, resolve_user=lambda request: request.query_params.get("user"))
    asyncio.run(main())
