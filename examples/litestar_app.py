"""A Litestar app whose users pay for its AI calls.

litestar --app-dir examples --app litestar_app:app run
"""

from typing import Any

from litestar import Litestar, Request, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.middleware.session.server_side import ServerSideSessionConfig
from wattfare_litestar import WattfarePlugin

from wattfare_mw import AsyncUser, User


@post("/summary", status_code=200)
async def summary(
    request: Request[Any, Any, Any], wattfare_user: NamedDependency[AsyncUser]
) -> dict[str, str]:
    text = (await request.json())["text"]
    answer = await wattfare_user.model("wattfare/echo").generate(text, max_tokens=200)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


@post("/budget", status_code=200, sync_to_thread=True)
def budget(wattfare_user_sync: NamedDependency[User]) -> dict[str, str]:
    return {"remainingUsd": str(wattfare_user_sync.status().remaining_usd)}


@post("/sign-in/{name:str}", status_code=204)
async def sign_in(request: Request[Any, Any, Any]) -> None:
    request.session["user_id"] = request.path_params["name"]  # after a password, of course


async def signed_in_user(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    user_id: str | None = connection.session.get("user_id")  # your sign-in: an id, or None
    return user_id


app = Litestar(
    [summary, budget, sign_in],
    middleware=[ServerSideSessionConfig().middleware],
    plugins=[
        WattfarePlugin(resolve_user=signed_in_user, request_limit=20),
    ],
)
