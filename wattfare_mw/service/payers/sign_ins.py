"""Sign-ins: the payer of a browser, and the time of the payer's last proof of identity."""

from __future__ import annotations

import secrets

import msgspec

#: The maximum age of the last proof, by passkey or recovery code, for actions that cost money, in
#: seconds.
FRESH_SECONDS = 600
#: How long a sign-in lasts, in seconds.
SIGN_IN_SECONDS = 12 * 3600


class SignIn(msgspec.Struct, frozen=True):
    """The sign-in of a payer's browser.

    Attributes:
        payer_id: the payer.
        age: the time since the payer last used a passkey or a recovery code, in seconds.
    """

    payer_id: str
    age: int

    def is_fresh(self) -> bool:
        """True if the payer used a passkey or a recovery code in the last ten minutes."""
        return self.age <= FRESH_SECONDS


def new_token() -> str:
    """A value for the cookie of a sign-in: 256 random bits."""
    return secrets.token_urlsafe(32)
