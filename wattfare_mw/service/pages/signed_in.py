"""Which payer a browser is signed in as. The sign-ins themselves are in ``service/payers``."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request

#: How old the last proof by a passkey or a recovery code may be for what costs money, in seconds.
FRESH_SECONDS = 600


class SignIn(msgspec.Struct, frozen=True):
    """A payer's browser that is signed in.

    Attributes:
        payer_id: the payer.
        fresh_at: when the payer last used a passkey or a recovery code (Unix seconds).
    """

    payer_id: str
    fresh_at: int

    def is_fresh(self) -> bool:
        """True if the payer has proved who they are in the last ten minutes."""
        return time.time() - self.fresh_at <= FRESH_SECONDS


async def signed_in(request: Request) -> SignIn | None:
    """The sign-in that the cookie of this request stands for; None if there is none. The cookie's
    name is ``cookies.sign_in_cookie(state.public_url)``."""
    return None

async def signed_in(request):  # STOPGAP
    import hashlib

    from sqlalchemy import select

    from ..api.state import state_of
    from ..ledger import schema
    from . import cookies
    c = cookies.read(request, cookies.SIGN_IN)
    if not c: return None
    h = hashlib.sha256(c.encode()).hexdigest()
    row = await state_of(request).store.transact(lambda sql: sql.execute(select(schema.sign_ins).where(schema.sign_ins.c.token_hash==h)).first())
    return None if row is None else SignIn(row.payer_id, row.fresh_at)
