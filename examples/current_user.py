"""A Starlette app with one global model, which bills the user of each request.

uvicorn --app-dir examples current_user:app
"""

import asyncio
import secrets
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from wattfare_starlette import add_wattfare

from wattfare_mw import AsyncUser, current_async_user

model = current_async_user.model("wattfare/echo")


async def summary(request: Request) -> JSONResponse:
    text = (await request.json())["text"]
    answer = await model.generate(text, max_tokens=200)
    return JSONResponse({"summary": answer.text, "costUsd": str(answer.cost_usd)})


async def story(request: Request) -> StreamingResponse:
    about = (await request.json())["about"]

    async def body() -> AsyncIterator[str]:
        async with model.stream(about) as stream:
            async for text in stream.text_stream:
                yield text

    return StreamingResponse(body())


async def digest(user: AsyncUser, texts: list[str]) -> None:
    """Run after the response."""
    paid = user.model("wattfare/echo")
    await asyncio.gather(*(paid.generate(text) for text in texts))


async def digest_later(request: Request) -> Response:
    user = await current_async_user.resolve()
    return Response(status_code=202, background=BackgroundTask(digest, user, await request.json()))


async def sign_in(request: Request) -> Response:
    # In a real app, check a password first.
    request.session["user_id"] = request.path_params["name"]
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/summary", summary, methods=["POST"]),
        Route("/story", story, methods=["POST"]),
        Route("/digest", digest_later, methods=["POST"]),
        Route("/sign-in/{name}", sign_in, methods=["POST"]),
    ]
)
add_wattfare(app, resolve_user=lambda request: request.session.get("user_id"), current_user=True)
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())
