"""A Starlette app whose users pay for its AI calls.

uvicorn --app-dir examples starlette_app:app
"""

import secrets

from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from wattfare_starlette import add_wattfare, get_user, get_user_sync

ACCOUNTS: dict[str, int] = {}  # your table of accounts: names and ids


async def home(request: Request) -> PlainTextResponse:
    if "user_id" not in request.session:
        return PlainTextResponse("Sign in to ask the model.")
    status = await (await get_user(request)).status()
    if not status.connected:
        return PlainTextResponse("Connect a budget to ask the model.")
    return PlainTextResponse(f"{status.remaining_usd} USD left this month.")


async def summary(request: Request) -> JSONResponse:
    text = (await request.json())["text"]
    user = await get_user(request)
    answer = await user.model("wattfare/echo").generate(text, max_tokens=200)
    return JSONResponse({"summary": answer.text, "costUsd": str(answer.cost_usd)})


def budget(request: Request) -> JSONResponse:
    status = get_user_sync(request).status()  # a sync view
    return JSONResponse({"remainingUsd": str(status.remaining_usd)})


async def sign_in(request: Request) -> Response:
    name = request.path_params["name"]
    # In a real app, check a password first.
    request.session["user_id"] = ACCOUNTS.setdefault(name, len(ACCOUNTS) + 1)
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/summary", summary, methods=["POST"]),
        Route("/budget", budget),
        Route("/sign-in/{name}", sign_in, methods=["POST"]),
    ]
)


async def signed_in_user(request: Request) -> int | None:
    return request.session.get("user_id")  # your app's id of the user, or None


add_wattfare(app, resolve_user=signed_in_user, request_limit=20)
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())
