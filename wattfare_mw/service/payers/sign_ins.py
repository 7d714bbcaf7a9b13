"""Sign-ins: which payer a browser acts for, and how long ago that payer proved who they are."""

from __future__ import annotations

import secrets
import time

import msgspec

#: How old the last proof by a passkey or a recovery code may be for what costs money, in seconds.
FRESH_SECONDS = 600
#: How long a sign-in lasts, in seconds.
SIGN_IN_SECONDS = 12 * 3600


class SignIn(msgspec.Struct, frozen=True):
    """A payer's browser that is signed in.

    Attributes:
        payer_id: the payer.
        fresh_at: when the payer last used a passkey or a recovery code (Unix seconds).
    """

    payer_id: str
    fresh_at: int

    def is_fresh(self, now: float | None = None) -> bool:
        """True if the payer has proved who they are in the last ten minutes."""
        return (time.time() if now is None else now) - self.fresh_at <= FRESH_SECONDS


def new_token() -> str:
    """A value for the cookie of a sign-in: 256 random bits."""
    return secrets.token_urlsafe(32)
