"""A Starlette app whose users pay for its AI calls.

uvicorn --app-dir examples starlette_app:app
"""

import secrets

from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from wattfare_starlette import add_wattfare, get_user, get_user_sync


async def summary(request: Request) -> JSONResponse:
    text = (await request.json())["text"]
    user = await get_user(request)
    answer = await user.model("wattfare/echo").generate(text, max_tokens=200)
    return JSONResponse({"summary": answer.text, "costUsd": str(answer.cost_usd)})


def budget(request: Request) -> JSONResponse:
    status = get_user_sync(request).status()  # a view that is no coroutine
    return JSONResponse({"remainingUsd": str(status.remaining_usd)})


async def sign_in(request: Request) -> Response:
    request.session["user_id"] = request.path_params["name"]  # after a password, of course
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/summary", summary, methods=["POST"]),
        Route("/budget", budget),
        Route("/sign-in/{name}", sign_in, methods=["POST"]),
    ]
)


async def signed_in_user(request: Request) -> str | None:
    return request.session.get("user_id")  # your sign-in: an id, or None


add_wattfare(app, resolve_user=signed_in_user, request_limit=20)
# What sets request.session comes after: the middleware that is added last runs first.
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())
