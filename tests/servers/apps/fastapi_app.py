"""A FastAPI app, and one more line."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection
from wattfare_starlette import add_wattfare, get_user_sync

from wattfare_mw import User

app = FastAPI()


async def signed_in(request: HTTPConnection) -> str | None:
    return request.cookies.get("user") or request.headers.get("x-user")


@app.get("/spent")
def spent(user: Annotated[User, Depends(get_user_sync)]) -> dict[str, float]:
    """What the signed-in user has spent."""
    return {"usd": float(user.status().usage.monthly_usd)}


add_wattfare(app, resolve_user=signed_in)
