"""A FastAPI app whose users pay for its AI calls.

uvicorn --app-dir examples fastapi_app:app
"""

import secrets
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from wattfare_starlette import add_wattfare, get_user

from wattfare_mw import AsyncUser

app = FastAPI()


async def signed_in_user(request: Request) -> str | None:
    return request.session.get("user_id")  # your sign-in: an id, or None


add_wattfare(app, resolve_user=signed_in_user, request_limit=20)
# What sets request.session comes after: the middleware that is added last runs first.
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())


class Text(BaseModel):
    text: str


@app.post("/summary")
async def summary(body: Text, user: Annotated[AsyncUser, Depends(get_user)]) -> dict[str, str]:
    answer = await user.model("wattfare/echo").generate(body.text, max_tokens=200)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


@app.post("/sign-in/{name}", status_code=204)
async def sign_in(name: str, request: Request) -> None:
    request.session["user_id"] = name  # after a password, of course
