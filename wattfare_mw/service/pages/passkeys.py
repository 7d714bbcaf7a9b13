"""The page of a payer's passkeys: add one, remove a lost one, get recovery codes."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection as Sql
from starlette.requests import Request
from starlette.responses import Response

from ..api.state import state_of
from ..payers import people
from ..payers.people import MAX_PASSKEYS, ListedPasskey
from . import cookies
from .endpoints import require_sign_in, sign_in_url
from .rendering import page, see_other

PASSKEYS = "/budget/passkeys"
_NOTICES = {
    "removed": "The passkey was removed, and your other browsers were signed out.",
}


class _Ways(NamedTuple):
    passkeys: list[ListedPasskey]
    codes: int


async def overview(request: Request) -> Response:
    """``GET /budget/passkeys``."""
    sign_in = require_sign_in(request)

    def look(sql: Sql) -> _Ways:
        payer_id = sign_in.payer_id
        return _Ways(people.passkeys_of(sql, payer_id), people.codes_left(sql, payer_id))

    ways = await state_of(request).store.transact(look)
    context = {
        "notice": _NOTICES.get(request.query_params.get("done", "")),
        "passkeys": ways.passkeys,
        "codes": ways.codes,
        "has_room": len(ways.passkeys) < MAX_PASSKEYS,
        "next": PASSKEYS,
        "needs_sign_in": not sign_in.is_fresh(),
        "sign_in_url": sign_in_url(request, again=True),
    }
    return page(request, "passkeys.html", context)


async def remove(request: Request) -> Response:
    """``POST /budget/passkeys/{key}/remove``."""
    payer_id = require_sign_in(request, fresh=True, next_=PASSKEYS).payer_id
    key: str = request.path_params["key"]
    cookie = cookies.read(request, cookies.SIGN_IN) or ""
    await state_of(request).store.transact(
        lambda sql: people.remove_passkey(sql, payer_id, key, cookie)
    )
    return see_other(f"{PASSKEYS}?done=removed")
