"""Passkeys: the two ceremonies of WebAuthn, in which a browser creates one or signs in with one.

The relying party is always the host of the service's public URL, and its origin is that URL: what
a request says of itself (``Host``) has no part in it. ``webauthn`` is imported when it is first
needed, since that takes a third of a second.
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
#: The bytes of a challenge.
CHALLENGE_BYTES = 32
#: The name of the service in the dialogs of browsers.
NAME = "Wattfare"

#: An id in base64url. WebAuthn allows 1023 bytes.
_CREDENTIAL_ID = re.compile(r"[A-Za-z0-9_-]{1,1364}")

Ceremony = Literal["create", "sign-in"]


class Challenge(msgspec.Struct, frozen=True):
    """What a browser has to sign. Each is used once.

    Attributes:
        kind: the ceremony that it is for.
        challenge: random bytes.
        payer_id: whom a new passkey is for; None to sign in.
    """

    kind: Ceremony
    challenge: bytes
    payer_id: str | None = None

    def __repr__(self) -> str:
        return f"Challenge({self.kind!r})"


class Passkey(msgspec.Struct, frozen=True):
    """A passkey, as the service keeps it.

    Attributes:
        credential_id: its id, in base64url.
        public_key: in the format of COSE.
        sign_count: how often it was used, if the authenticator counts; otherwise 0.
    """

    credential_id: str
    payer_id: str
    public_key: bytes
    sign_count: int


def new_payer_id() -> str:
    """An id for a new payer: 128 random bits, which say nothing of the person."""
    return secrets.token_hex(16)


def new_challenge(kind: Ceremony, payer_id: str | None = None) -> Challenge:
    """A fresh challenge."""
    return Challenge(kind, secrets.token_bytes(CHALLENGE_BYTES), payer_id)


def creation_options(
    challenge: Challenge, public_url: str, name: str, existing: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``navigator.credentials.create`` takes, in the JSON form of WebAuthn.

    Args:
        name: tells this passkey from others of the same person.
        existing: the ids of the payer's passkeys. An authenticator that has one of them makes no
            other.
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
            # It is found without a user name, and it is the only proof, so that a stolen
            # authenticator must not be enough.
            resident_key=structs.ResidentKeyRequirement.REQUIRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[
            structs.PublicKeyCredentialDescriptor(id=base64url_to_bytes(each)) for each in existing
        ],
    )
    return options_to_json_dict(options)


def sign_in_options(challenge: Challenge, public_url: str) -> dict[str, Any]:
    """What ``navigator.credentials.get`` takes, in the JSON form of WebAuthn."""
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
    """The new passkey that a browser has made.

    Args:
        credential: the browser's answer, as JSON.

    Raises:
        WattfareError: ``invalid_request``; it is not an answer to this challenge, from this origin.
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
    """The id of the passkey that a browser has signed in with. Nothing of it is proved yet.

    Raises:
        WattfareError: ``invalid_request``; the answer cannot be read.
    """

    def read() -> str:
        found = json.loads(credential)["id"]
        if not _CREDENTIAL_ID.fullmatch(found):
            raise ValueError  # a database takes not every text
        return found

    return _checked(read)


def verify_sign_in(
    credential: str, challenge: Challenge, passkey: Passkey, public_url: str
) -> Passkey:
    """The passkey as it is to be kept from now on: with its new count.

    Args:
        credential: the browser's answer, as JSON.

    Raises:
        WattfareError: ``invalid_request``; this passkey has not answered this challenge, from this
            origin, or its count shows that there are two of it.
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
    """The refusal of a passkey. It does not say why, since only an attacker would need that."""
    return invalid_request("The passkey could not be verified. Try again.", 403)


def _checked(read: Callable[[], T]) -> T:
    # What a browser sends may be anything, and the library raises whatever its parsers do.
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
