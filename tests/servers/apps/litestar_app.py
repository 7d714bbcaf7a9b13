"""A Litestar app, and one more line."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, get
from litestar.connection import ASGIConnection
from wattfare_litestar import WattfarePlugin

from wattfare_mw import AsyncUser


def signed_in(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    return connection.cookies.get("user") or connection.headers.get("x-user")


@get("/spent")
async def spent(wattfare_user: AsyncUser) -> dict[str, float]:
    """What the signed-in user has spent."""
    return {"usd": float((await wattfare_user.status()).usage.monthly_usd)}


app = Litestar([spent], plugins=[WattfarePlugin(resolve_user=signed_in)])
