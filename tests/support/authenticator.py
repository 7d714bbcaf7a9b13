"""A passkey authenticator in software: ES256 without attestation, like that of a phone or a laptop.

It answers the options of `navigator.credentials.create` and `get` in the JSON form of WebAuthn.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

#: The flags of authenticator data.
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


@dataclass
class Credential:
    """One passkey in the authenticator."""

    id: bytes
    user: bytes
    rp_id: str
    key: ec.EllipticCurvePrivateKey
    count: int = 0


@dataclass
class Authenticator:
    """The passkeys of one person.

    Attributes:
        origin: the origin of the page in the browser.
        rp_id: the relying party for which the authenticator signs; None takes it from the options.
        verifies: True if it verifies the person, by a finger or a PIN.
        counts: True if it counts the uses of each passkey.
    """

    origin: str
    rp_id: str | None = None
    verifies: bool = True
    counts: bool = True
    credentials: list[Credential] = field(default_factory=list)

    def create(self, options: dict[str, Any]) -> str:
        """Creates a passkey, as `navigator.credentials.create` does."""
        credential = Credential(
            id=secrets.token_bytes(16),
            user=decode(options["user"]["id"]),
            rp_id=self.rp_id or options["rp"]["id"],
            key=ec.generate_private_key(ec.SECP256R1()),
        )
        self.credentials.append(credential)
        numbers = credential.key.public_key().public_numbers()
        public_key = cbor(
            {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32), -3: numbers.y.to_bytes(32)}
        )
        attested = bytes(16) + len(credential.id).to_bytes(2) + credential.id + public_key
        data = self._data(credential, ATTESTED) + attested
        return self._answer(
            credential,
            {
                "clientDataJSON": encode(self._client_data("webauthn.create", options)),
                "attestationObject": encode(cbor({"fmt": "none", "attStmt": {}, "authData": data})),
            },
        )

    def sign_in(self, options: dict[str, Any], credential: Credential | None = None) -> str:
        """Signs with the last passkey, as `navigator.credentials.get` does."""
        credential = credential or self.credentials[-1]
        if self.counts:
            credential.count += 1
        client_data = self._client_data("webauthn.get", options)
        data = self._data(credential)
        signed = data + hashlib.sha256(client_data).digest()
        return self._answer(
            credential,
            {
                "clientDataJSON": encode(client_data),
                "authenticatorData": encode(data),
                "signature": encode(credential.key.sign(signed, ec.ECDSA(hashes.SHA256()))),
                "userHandle": encode(credential.user),
            },
        )

    def _data(self, credential: Credential, flags: int = 0) -> bytes:
        flags |= PRESENT | (VERIFIED if self.verifies else 0)
        rp_id = hashlib.sha256((self.rp_id or credential.rp_id).encode()).digest()
        return rp_id + bytes([flags]) + credential.count.to_bytes(4)

    def _client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        data = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps({**data, "crossOrigin": False}).encode()

    def _answer(self, credential: Credential, response: dict[str, str]) -> str:
        name = encode(credential.id)
        return json.dumps(
            {
                "id": name,
                "rawId": name,
                "type": "public-key",
                "response": response,
                "clientExtensionResults": {},
            }
        )


def encode(data: bytes) -> str:
    """Encodes in base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Decodes base64url without padding."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def cbor(value: Any) -> bytes:
    """Encodes the few kinds of CBOR that an authenticator sends."""
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    items = b"".join(cbor(key) + cbor(each) for key, each in value.items())
    return _head(5, len(value)) + items


def _head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    size = 1 if number < 256 else 2
    return bytes([kind << 5 | (23 + size)]) + number.to_bytes(size)
