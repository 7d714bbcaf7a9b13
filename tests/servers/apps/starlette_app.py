"""A Starlette app, and one more line."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from wattfare_starlette import add_wattfare, get_user


def signed_in(request: HTTPConnection) -> str | None:
    return request.cookies.get("user") or request.headers.get("x-user")


async def spent(request: Request) -> JSONResponse:
    """What the signed-in user has spent."""
    status = await (await get_user(request)).status()
    return JSONResponse({"usd": float(status.usage.monthly_usd)})


app = Starlette(routes=[Route("/spent", spent)])
add_wattfare(app, resolve_user=signed_in)
