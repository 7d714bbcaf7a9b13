"""The token route alone, in Litestar.

litestar --app-dir examples --app token_route_litestar:app run
"""

from typing import Any

from litestar import Litestar, Request, post
from litestar.connection import ASGIConnection
from litestar.middleware.session.server_side import ServerSideSessionConfig
from wattfare_litestar import session_route

from wattfare_mw import AsyncWattfare

wf = AsyncWattfare()


@post("/sign-in/{name:str}", status_code=204)
async def sign_in(request: Request[Any, Any, Any]) -> None:
    # In a real app, check a password first.
    request.session["user_id"] = request.path_params["name"]


async def signed_in_user(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    user_id: str | None = connection.session.get("user_id")
    return user_id


token = session_route("/wattfare-token", wf, signed_in_user, request_limit=20)

app = Litestar(
    [sign_in, token],
    middleware=[ServerSideSessionConfig().middleware],
    on_shutdown=[wf.aclose],
)
