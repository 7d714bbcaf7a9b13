"""A Litestar app whose users pay for its AI calls.

litestar --app-dir examples --app litestar_app:app run
"""

from typing import Any

from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.middleware.session.server_side import ServerSideSessionConfig
from wattfare_litestar import WattfarePlugin

from wattfare_mw import AsyncUser, User, WattfareAuthError

ACCOUNTS: dict[str, int] = {}  # your table of accounts: names and ids


def sign_in_first(_request: Request[Any, Any, Any], _error: WattfareAuthError) -> Response[str]:
    return Response("Sign in to ask the model.", media_type=MediaType.TEXT)


@get("/", media_type=MediaType.TEXT, exception_handlers={WattfareAuthError: sign_in_first})
async def home(wattfare_user: NamedDependency[AsyncUser]) -> str:
    status = await wattfare_user.status()
    if not status.connected:
        return "Connect a budget to ask the model."
    return f"{status.remaining_usd} USD left this month."


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
    name = request.path_params["name"]
    # In a real app, check a password first.
    request.session["user_id"] = ACCOUNTS.setdefault(name, len(ACCOUNTS) + 1)


async def signed_in_user(connection: ASGIConnection[Any, Any, Any, Any]) -> int | None:
    user_id: int | None = connection.session.get("user_id")  # None if signed out
    return user_id


app = Litestar(
    [home, summary, budget, sign_in],
    middleware=[ServerSideSessionConfig().middleware],
    plugins=[
        WattfarePlugin(resolve_user=signed_in_user, request_limit=20),
    ],
)
