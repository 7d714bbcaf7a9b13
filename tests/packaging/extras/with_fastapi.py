"""A FastAPI app with the adapter."""

import asyncio
from typing import Any

from fake_service import fake_service
from fastapi import FastAPI
from wattfare_fastapi import CurrentUser, add_wattfare

app = FastAPI()


@app.get("/hello")
async def hello(user: CurrentUser) -> str:
    return (await user.model("wattfare/echo").generate("Say hello.")).text


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
    assert await get("/hello", b"user=ann") == (200, b'"Hello."')
    assert (await get("/hello"))[0] == 401
    assert (await get("/api/wattfare/status"))[0] == 401


with fake_service():
    add_wattfare(app, resolve_user=lambda request: request.query_params.get("user"))
    asyncio.run(main())
