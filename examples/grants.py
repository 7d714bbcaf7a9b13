"""An app without accounts. A one-time grant pays for each call.

uvicorn --app-dir examples grants:app
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from wattfare_starlette import WattfareMiddleware, wattfare_error_handler

from wattfare_mw import AsyncWattfare, WattfareError

wf = AsyncWattfare()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
    async with wf:
        yield


async def haiku(request: Request) -> JSONResponse:
    grant = wf.grant((await request.json())["grantToken"])
    answer = await grant.model("wattfare/echo").generate("Write a haiku.", max_tokens=30)
    return JSONResponse({"haiku": answer.text})


async def no_user(request: Request) -> None:
    """This app has no accounts."""


app = Starlette(
    routes=[Route("/haiku", haiku, methods=["POST"])],
    lifespan=lifespan,
    exception_handlers={WattfareError: wattfare_error_handler},
)
app.add_middleware(WattfareMiddleware, client=wf, resolve_user=no_user, allow_grants=True)
