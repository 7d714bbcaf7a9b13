"""Session tokens: JWTs for one user of one app, signed with the service's own key (HS256)."""

from __future__ import annotations

import time
from collections.abc import Callable

import jwt
import msgspec

from ..errors import WattfareAuthError, invalid_request
from ..transport import SecretBytes
from ..types import CreatedSession

ALGORITHM = "HS256"
ISSUER = "wattfare-service"
AUDIENCE = "wattfare-connections"
#: How long a session token is valid, in seconds.
LIFETIME = 600
#: How far in the future the ``iat`` of a token may be, in seconds, because clocks of hosts differ.
LEEWAY = 30
#: The shortest signing key, in bytes. HS256 is only as strong as its key.
MIN_KEY_BYTES = 32


class Session(msgspec.Struct, frozen=True):
    """The claims of a token.

    Attributes:
        app_id: the app.
        user_id: the app's own id of the user.
        limit: the cap that the app asked for, in nano-dollars; None for no cap.
        epoch: how many times the connection had been revoked when the token was created. A token
            from an earlier epoch cannot connect.
        account_label: the name of the user's account at the app, for the approval page.
    """

    app_id: str
    user_id: str
    limit: int | None
    epoch: int = 0
    account_label: str | None = None


class _Claims(msgspec.Struct):
    sub: str
    app: str
    lim: int | None
    iat: int
    exp: int
    rev: int = 0
    lab: str | None = None


class Signer:
    """Creates and reads session tokens.

    Args:
        clock: returns the time in Unix seconds.

    Raises:
        WattfareError: ``invalid_request``; the key is too short.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        key = SecretBytes(key)
        if len(key) < MIN_KEY_BYTES:
            raise invalid_request(
                f"The signing key (WATTFARE_SERVICE_SECRET) has {len(key)} bytes; "
                f"it needs at least {MIN_KEY_BYTES}."
            )
        self._key = key
        self._clock = clock

    def __repr__(self) -> str:
        return "Signer()"

    def mint(self, session: Session, *, now: float | None = None) -> CreatedSession:
        """Create a token for this session. It is valid for :data:`LIFETIME`."""
        issued = int(self._clock() if now is None else now)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": issued,
            "exp": issued + LIFETIME,
            "sub": session.user_id,
            "app": session.app_id,
            "lim": session.limit,
            "rev": session.epoch,
        }
        if session.account_label is not None:
            claims["lab"] = session.account_label
        token: str = jwt.encode(  # pyright: ignore[reportUnknownMemberType]
            claims, self._key, algorithm=ALGORITHM
        )
        return CreatedSession(token=token, expires_at=issued + LIFETIME)

    def read(self, token: str) -> Session:
        """The claims of this token.

        Raises:
            WattfareAuthError: the token is forged, expired or for another use.
        """
        failure = "The session token is not valid."
        try:
            payload = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                # PyJWT has one leeway for all times, but `exp` must have none. It has no clock but
                # the machine's, so the times are checked below.
                options={
                    "require": ["iss", "aud", "iat", "exp", "sub"],
                    "verify_iat": False,
                    "verify_exp": False,
                },
            )
            claims = msgspec.convert(payload, _Claims)
            now = self._clock()
            if claims.exp <= now:
                failure = "The session token has expired. Get a new one."
            elif claims.iat <= now + LEEWAY:
                return Session(claims.app, claims.sub, claims.lim, claims.rev, claims.lab)
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError):
            pass
        # Outside of the handlers, because the frames of PyJWT have the key.
        raise WattfareAuthError(failure)
