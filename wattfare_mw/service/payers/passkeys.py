"""Passkeys: the two ceremonies of WebAuthn, which create a passkey and sign in with one.

The relying party is always the host of the service's public URL, and the origin is that URL. The
``Host`` header of a request is ignored. ``webauthn`` is imported on first use, which takes a third
of a second.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from ...errors import WattfareError, invalid_request

T = TypeVar("T")

#: How long a browser may take for a ceremony, in seconds.
CHALLENGE_SECONDS = 300
#: The length of a challenge, in bytes.
CHALLENGE_BYTES = 32
#: The name of the service in the dialogs of browsers.
NAME = "Wattfare"

#: An id in base64url. WebAuthn allows 1023 bytes.
_CREDENTIAL_ID = re.compile(r"[A-Za-z0-9_-]{1,1364}")

Ceremony = Literal["create", "sign-in"]


class Challenge(msgspec.Struct, frozen=True):
    """A challenge for a browser to sign. Each is used once.

    Attributes:
        kind: the ceremony.
        challenge: random bytes.
        payer_id: the payer of a new passkey; None to sign in.
    """

    kind: Ceremony
    challenge: bytes
    payer_id: str | None = None

    def __repr__(self) -> str:
        return f"Challenge({self.kind!r})"


class Passkey(msgspec.Struct, frozen=True):
    """A passkey, as the service stores it.

    Attributes:
        credential_id: its id, in base64url.
        public_key: in the format of COSE.
        sign_count: the number of uses, if the authenticator counts; otherwise 0.
    """

    credential_id: str
    payer_id: str
    public_key: bytes
    sign_count: int


def new_payer_id() -> str:
    """An id for a new payer: 128 random bits, which do not identify the person."""
    return secrets.token_hex(16)


def new_challenge(kind: Ceremony, payer_id: str | None = None) -> Challenge:
    """A fresh challenge."""
    return Challenge(kind, secrets.token_bytes(CHALLENGE_BYTES), payer_id)


def creation_options(
    challenge: Challenge, public_url: str, name: str, existing: Sequence[str] = ()
) -> dict[str, Any]:
    """The options of ``navigator.credentials.create``, in WebAuthn's JSON.

    Args:
        name: distinguishes this passkey from the person's others.
        existing: the ids of the payer's passkeys. An authenticator with one of them does not create
            another.
    """
    from webauthn import base64url_to_bytes, generate_registration_options
    from webauthn.helpers import options_to_json_dict, structs

    assert challenge.payer_id is not None
    options = generate_registration_options(
        rp_id=_rp_id(public_url),
        rp_name=NAME,
        user_id=bytes.fromhex(challenge.payer_id),
        user_name=name,
        challenge=challenge.challenge,
        timeout=CHALLENGE_SECONDS * 1000,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            # The passkey is found without a user name and is the only proof. So a stolen
            # authenticator alone must not be enough.
            resident_key=structs.ResidentKeyRequirement.REQUIRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[
            structs.PublicKeyCredentialDescriptor(id=base64url_to_bytes(each)) for each in existing
        ],
    )
    return options_to_json_dict(options)


def sign_in_options(challenge: Challenge, public_url: str) -> dict[str, Any]:
    """The options of ``navigator.credentials.get``, in WebAuthn's JSON."""
    from webauthn import generate_authentication_options
    from webauthn.helpers import options_to_json_dict, structs

    options = generate_authentication_options(
        rp_id=_rp_id(public_url),
        challenge=challenge.challenge,
        timeout=CHALLENGE_SECONDS * 1000,
        user_verification=structs.UserVerificationRequirement.REQUIRED,
    )
    return options_to_json_dict(options)


def verify_creation(credential: str, challenge: Challenge, public_url: str) -> Passkey:
    """Verify and return the new passkey of a browser.

    Args:
        credential: the browser's answer, as JSON.

    Raises:
        WattfareError: ``invalid_request`` if it does not answer this challenge from this origin.
    """
    from webauthn import verify_registration_response

    payer_id = challenge.payer_id
    assert payer_id is not None

    def verify() -> Passkey:
        verified = verify_registration_response(
            credential=credential,
            expected_challenge=challenge.challenge,
            expected_rp_id=_rp_id(public_url),
            expected_origin=public_url,
            require_user_verification=True,
        )
        return Passkey(
            _base64url(verified.credential_id),
            payer_id,
            verified.credential_public_key,
            verified.sign_count,
        )

    return _checked(verify)


def credential_id_of(credential: str) -> str:
    """The id of the passkey in a browser's answer. It is not verified yet.

    Raises:
        WattfareError: ``invalid_request`` if the answer is malformed.
    """

    def read() -> str:
        found = json.loads(credential)["id"]
        if not _CREDENTIAL_ID.fullmatch(found):
            raise ValueError  # a database does not accept every text
        return found

    return _checked(read)


def verify_sign_in(
    credential: str, challenge: Challenge, passkey: Passkey, public_url: str
) -> Passkey:
    """Verify the browser's answer and return the passkey with its new count.

    Args:
        credential: the browser's answer, as JSON.

    Raises:
        WattfareError: ``invalid_request``; this passkey has not answered this challenge from this
            origin, or its count shows that there is a copy of the passkey.
    """
    from webauthn import verify_authentication_response
    from webauthn.helpers import parse_authentication_credential_json

    def verify() -> Passkey:
        parsed = parse_authentication_credential_json(credential)
        handle = parsed.response.user_handle
        if handle is not None and handle != bytes.fromhex(passkey.payer_id):
            raise ValueError
        verified = verify_authentication_response(
            credential=parsed,
            expected_challenge=challenge.challenge,
            expected_rp_id=_rp_id(public_url),
            expected_origin=public_url,
            credential_public_key=passkey.public_key,
            credential_current_sign_count=passkey.sign_count,
            require_user_verification=True,
        )
        if _base64url(verified.credential_id) != passkey.credential_id:
            raise ValueError
        return msgspec.structs.replace(passkey, sign_count=verified.new_sign_count)

    return _checked(verify)


def not_verified() -> WattfareError:
    """The refusal of a passkey. It gives no reason, because only an attacker needs one."""
    return invalid_request("The passkey could not be verified. Try again.", 403)


def _checked(read: Callable[[], T]) -> T:
    # A browser can send anything, and the library raises any error of its parsers.
    with suppress(Exception):
        return read()
    raise not_verified()


def _rp_id(public_url: str) -> str:
    host = urlsplit(public_url).hostname
    assert host is not None
    return host


def _base64url(value: bytes) -> str:
    from webauthn.helpers import bytes_to_base64url

    return bytes_to_base64url(value)
