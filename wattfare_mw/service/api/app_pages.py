"""Checks requests from the pages of an app, which call the service from the app's own origin."""

from __future__ import annotations

from starlette.requests import Request

from ..payers import approval_store
from ..records import App
from .bodies import headers_of
from .framing import allow_origin
from .state import state_of


def page_origin(request: Request) -> str | None:
    """The origin of the page that sends this request, or None."""
    return headers_of(request.scope).single("origin")


async def admit_page(request: Request, app: App) -> frozenset[str]:
    """The origins that the app has registered. For a live app, only pages of these origins may use
    its credential and read the response."""
    state = state_of(request)
    origins = await state.store.transact(lambda sql: approval_store.registered_origins(sql, app.id))
    if app.mode != "test":
        origin = page_origin(request)
        allow_origin(request.scope, origin if origin in origins else None)
    return origins
