"""A FastAPI app whose users sign in with a bearer token from a database.

fastapi dev examples/fastapi_bearer.py
"""

import sqlite3
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel
from wattfare_fastapi import CurrentUser, add_wattfare, wattfare_responses

bearer = OAuth2PasswordBearer(tokenUrl="/token")


class Account(BaseModel):
    id: int
    name: str
    plan: str


def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("file:accounts?mode=memory", uri=True, check_same_thread=False)
    connection.execute("CREATE TABLE accounts (id INTEGER, name TEXT, plan TEXT, token TEXT)")
    connection.execute("INSERT INTO accounts VALUES (7, 'Ann', 'pro', 'of-ann')")
    yield connection
    connection.close()


def current_account(
    token: Annotated[str, Depends(bearer)],
    connection: Annotated[sqlite3.Connection, Depends(database)],
) -> Account:
    query = "SELECT id, name, plan FROM accounts WHERE token = ?"
    row = connection.execute(query, [token]).fetchone()
    if row is None:
        raise HTTPException(401, "Unknown token", {"WWW-Authenticate": "Bearer"})
    return Account(id=row[0], name=row[1], plan=row[2])


CurrentAccount = Annotated[Account, Depends(current_account)]


def user_id(account: CurrentAccount) -> int:
    return account.id


def cap(account: CurrentAccount) -> int:
    return 50 if account.plan == "pro" else 5


app = FastAPI()
add_wattfare(app, resolve_user=user_id, request_limit=cap)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["https://app.example.com"],
    allow_methods=["*"],
    allow_headers=["*"],
)


@app.post("/haiku", responses=wattfare_responses)
async def haiku(account: CurrentAccount, user: CurrentUser) -> str:
    answer = await user.model("wattfare/echo").generate(f"A haiku for {account.name}.")
    return answer.text
