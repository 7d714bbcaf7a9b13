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
