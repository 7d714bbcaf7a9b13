"""A Litestar app whose users sign in with a JWT.

litestar --app-dir examples --app litestar_jwt:app run
"""

import secrets
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Request, Response, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.security.jwt import JWTAuth, Token
from wattfare_litestar import WattfarePlugin

from wattfare_mw import AsyncUser


@dataclass
class Account:
    id: int
    name: str


ACCOUNTS = {"1": Account(1, "Ann"), "2": Account(2, "Bob")}


async def retrieve_account(
    token: Token, _connection: ASGIConnection[Any, Any, Any, Any]
) -> Account | None:
    return ACCOUNTS.get(token.sub)


jwt = JWTAuth[Account](
    retrieve_user_handler=retrieve_account, token_secret=secrets.token_hex(), exclude=["/schema"]
)


async def account_id(connection: ASGIConnection[Any, Account, Token, Any]) -> int:
    return connection.user.id


@post("/sign-in/ann", exclude_from_auth=True)
async def sign_in() -> Response[Account]:
    # A real app checks a password here.
    return jwt.login("1", response_body=ACCOUNTS["1"])


@post("/haiku", status_code=200)
async def haiku(
    request: Request[Account, Token, Any], wattfare_user: NamedDependency[AsyncUser]
) -> str:
    prompt = f"A haiku for {request.user.name}."
    return (await wattfare_user.model("wattfare/echo").generate(prompt)).text


app = Litestar(
    [sign_in, haiku],
    on_app_init=[jwt.on_app_init],
    plugins=[WattfarePlugin(resolve_user=account_id, request_limit=20)],
)
