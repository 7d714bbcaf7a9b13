"""Finds the payer who is signed in, from the cookie of a request."""

from __future__ import annotations

import re

from starlette.requests import Request

from ..api.state import state_of
from ..ledger.clock import seconds
from ..payers import people
from ..payers.sign_ins import FRESH_SECONDS, SignIn
from . import cookies

__all__ = ["FRESH_SECONDS", "SignIn", "signed_in"]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


async def signed_in(request: Request) -> SignIn | None:
    """The sign-in of this request's cookie; None if there is none."""
    token = cookies.read(request, cookies.SIGN_IN)
    if token is None or not _TOKEN.fullmatch(token):
        return None
    return await state_of(request).store.at(
        lambda sql, now: people.find_sign_in(sql, token, seconds(now))
    )
