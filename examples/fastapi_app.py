"""A FastAPI app whose users pay for its AI calls.

fastapi dev examples/fastapi_app.py
"""

import secrets

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware
from wattfare_fastapi import CurrentUser, CurrentUserSync, add_wattfare, wattfare_responses

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key=secrets.token_hex())


def signed_in_user(request: Request) -> int | None:
    return request.session.get("user_id")  # your app's id of the user, or None


add_wattfare(app, resolve_user=signed_in_user, request_limit=20)

ACCOUNTS: dict[str, int] = {}  # your table of accounts: names and ids


class Text(BaseModel):
    text: str


@app.post("/summary", responses=wattfare_responses)
async def summary(body: Text, user: CurrentUser) -> dict[str, str]:
    answer = await user.model("wattfare/echo").generate(body.text, max_tokens=200)
    return {"summary": answer.text, "costUsd": str(answer.cost_usd)}


@app.get("/budget", responses=wattfare_responses)
def budget(user: CurrentUserSync) -> dict[str, str]:
    return {"remainingUsd": str(user.status().remaining_usd)}


@app.post("/sign-in/{name}", status_code=204)
async def sign_in(name: str, request: Request) -> None:
    # In a real app, check a password first.
    request.session["user_id"] = ACCOUNTS.setdefault(name, len(ACCOUNTS) + 1)
