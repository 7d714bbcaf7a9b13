"""The token route alone, in Starlette.

uvicorn --app-dir examples token_route_starlette:app
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from wattfare_starlette import session_endpoint

from wattfare_mw import AsyncWattfare

wf = AsyncWattfare()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
    async with wf:
        yield


async def sign_in(request: Request) -> Response:
    # In a real app, check a password first.
    request.session["user_id"] = request.path_params["name"]
    return Response(status_code=204)


async def signed_in_user(request: Request) -> str | None:
    return request.session.get("user_id")


token = session_endpoint(wf, signed_in_user, request_limit=20)

app = Starlette(
    routes=[
        Route("/wattfare-token", token, methods=["POST"]),
        Route("/sign-in/{name}", sign_in, methods=["POST"]),
    ],
    lifespan=lifespan,
    middleware=[Middleware(SessionMiddleware, secret_key=secrets.token_hex())],
)
