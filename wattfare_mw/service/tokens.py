"""Session tokens: JWTs for one user of one app, signed with the service's own key (HS256)."""

from __future__ import annotations

import time

import jwt
import msgspec

from ..errors import WattfareAuthError, invalid_request
from ..types import CreatedSession

ALGORITHM = "HS256"
ISSUER = "wattfare-service"
AUDIENCE = "wattfare-connections"
#: How long a session token is good for, in seconds.
LIFETIME = 600
#: The shortest signing key that is taken: HS256 is no stronger than its key (bytes).
MIN_KEY_BYTES = 32


class Session(msgspec.Struct, frozen=True):
    """What a token says: whose it is, and the cap that the app asked for (nano-dollars)."""

    app_id: str
    user_id: str
    limit: int | None


class _Claims(msgspec.Struct):
    sub: str
    app: str
    lim: int | None


class Signer:
    """Mints and reads the tokens.

    Raises:
        WattfareError: ``invalid_request``; the key is too short.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise invalid_request(
                f"The signing key (WATTFARE_SERVICE_SECRET) has {len(key)} bytes; "
                f"it needs at least {MIN_KEY_BYTES}."
            )
        self._key = key

    def __repr__(self) -> str:
        return "Signer()"

    def mint(self, session: Session, *, now: float | None = None) -> CreatedSession:
        """A token for this session, good from now on for :data:`LIFETIME`."""
        issued = int(time.time() if now is None else now)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": issued,
            "exp": issued + LIFETIME,
            "sub": session.user_id,
            "app": session.app_id,
            "lim": session.limit,
        }
        token: str = jwt.encode(  # pyright: ignore[reportUnknownMemberType]
            claims, self._key, algorithm=ALGORITHM
        )
        return CreatedSession(token=token, expires_at=issued + LIFETIME)

    def read(self, token: str) -> Session:
        """What the token says.

        Raises:
            WattfareAuthError: it is not ours, not for this use, or over.
        """
        try:
            payload = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": ["iss", "aud", "iat", "exp", "sub"]},
            )
            claims = msgspec.convert(payload, _Claims)
        except jwt.ExpiredSignatureError:
            raise WattfareAuthError("The session token has expired: get a new one.") from None
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError):
            raise WattfareAuthError("The session token is not valid.") from None
        return Session(claims.app, claims.sub, claims.lim)
