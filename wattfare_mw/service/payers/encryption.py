"""Encrypts the secrets of payers in the database, such as their keys for the upstream.

The cipher is AES-256-GCM. Each ciphertext is bound to one purpose, such as the id of its funding,
so it cannot be decrypted from another row. The encryption keys are in ``WATTFARE_ENCRYPTION_KEY``,
or in a file next to an SQLite database. The database never has them.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import WattfareError, invalid_request
from ...logs import get_logger
from ...transport import SecretBytes, hidden
from ..ledger.databases import backend_of, sqlite_file

ENCRYPTION_VARIABLE = "WATTFARE_ENCRYPTION_KEY"
#: The suffix of the key file. The rest of its name is the name of the database file.
FILE_SUFFIX = ".encryption-key"
KEY_BYTES = 32
_NONCE_BYTES = 12
#: The first byte of each ciphertext. It identifies the cipher.
_VERSION = b"\x01"
_MAX_FILE_BYTES = 10_000

log = get_logger("wattfare_mw.service", show_messages=False)


class Sealed(msgspec.Struct, frozen=True):
    """A ciphertext and the id of its encryption key."""

    ciphertext: bytes
    key_id: str


class UnreadableError(Exception):
    """A ciphertext cannot be decrypted: it was changed, it belongs to another row, or its
    encryption key is missing."""


class Keyring:
    """The encryption keys of a service.

    Args:
        keys: 32 bytes each. The first one encrypts, and all of them decrypt.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise _wrong_key()
        self._ciphers = {_id_of(key): AESGCM(key) for key in keys}
        self.first_id = _id_of(keys[0])

    def seal(self, secret: bytes, purpose: str) -> Sealed:
        """Encrypt a secret with the first key.

        Args:
            purpose: the use of the secret, such as ``funding:`` and an id. Decryption needs the
                same purpose.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self.first_id].encrypt(nonce, secret, _bound_to(purpose))
        return Sealed(_VERSION + nonce + sealed, self.first_id)

    def open(self, sealed: Sealed, purpose: str) -> SecretBytes:
        """Decrypt a secret.

        Raises:
            UnreadableError: it was sealed for another purpose, or with another key.
        """
        cipher = self._ciphers.get(sealed.key_id)
        data = sealed.ciphertext
        if cipher is None or data[:1] != _VERSION:
            raise UnreadableError
        start = len(_VERSION) + _NONCE_BYTES
        try:
            plain = cipher.decrypt(data[len(_VERSION) : start], data[start:], _bound_to(purpose))
        except (InvalidTag, ValueError):
            raise UnreadableError from None
        return SecretBytes(plain)

    def __repr__(self) -> str:
        return "Keyring()"


def new_key() -> str:
    """A new encryption key, in the format of ``WATTFARE_ENCRYPTION_KEY``."""
    return hidden(b64encode(secrets.token_bytes(KEY_BYTES)).decode())


def read_keys(text: str) -> tuple[SecretBytes, ...]:
    """The encryption keys in a comma-separated text.

    Raises:
        WattfareError: ``invalid_request``; one of them is not a valid key.
    """
    text = hidden(text)
    keys: list[SecretBytes] = []
    for each in text.split(","):
        key = _decoded(each.strip())
        if key is None:
            raise _wrong_key()
        if key not in keys:
            keys.append(key)
    return tuple(keys)


def keys_from_environment() -> tuple[SecretBytes, ...] | None:
    """The keys in ``WATTFARE_ENCRYPTION_KEY``; None if it is not set, or empty.

    Raises:
        WattfareError: ``invalid_request``; one of them is not a valid key.
    """
    value = hidden(os.environ.get(ENCRYPTION_VARIABLE))
    return read_keys(value) if value else None


def key_beside(database: Path) -> tuple[SecretBytes, ...]:
    """The encryption key in a file next to this SQLite file. The first call creates it, readable by
    its owner only.

    Raises:
        WattfareError: ``invalid_request`` if others can read the file, or it is invalid.
    """
    path = _key_file(database)
    try:
        if not path.exists():
            _make(path)
        with path.open("rb") as file:
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise invalid_request(
                    f"Other users of this machine may read the encryption key in {path}. Run "
                    f"`chmod 600` on it, or set {ENCRYPTION_VARIABLE} to the key and delete the "
                    "file."
                )
            text = hidden(file.read(_MAX_FILE_BYTES).decode("ascii", "replace"))
    except OSError as error:
        raise invalid_request(
            f"The encryption key in {path} cannot be used: {error.strerror}. "
            f"You can set {ENCRYPTION_VARIABLE} to the key instead."
        ) from None
    try:
        return read_keys(text)
    except WattfareError:
        raise invalid_request(f"{path} does not hold an encryption key.") from None


def find_keyring(
    database: str, keys: Sequence[bytes] | None, *, needed: bool, demanded: bool = False
) -> Keyring | None:
    """The encryption keys of a service; None if it runs without keys.

    Args:
        database: the URL of its database.
        keys: the configured keys.
        needed: True if payers may add keys. If not, an existing key file is used, but none is
            created.
        demanded: True if the operator explicitly lets payers add keys.

    Raises:
        WattfareError: ``invalid_request`` if the keys are invalid, or demanded but missing.
    """
    if keys is not None:
        return Keyring(keys)
    if backend_of(database) == "sqlite":
        file = sqlite_file(database)
        if file is None:  # the database is in memory, too
            return Keyring([secrets.token_bytes(KEY_BYTES)])
        if not needed and not _key_file(file).exists():
            return None
        return Keyring(key_beside(file))
    if demanded:
        raise invalid_request(
            f"With PostgreSQL, the keys of payers need {ENCRYPTION_VARIABLE}: 32 random bytes in "
            "base64, the same for all processes. To make one, run: openssl rand -base64 32. "
            "Without it, leave `openrouter` and `key` out of --funding."
        )
    if needed:
        log.warning(
            "payers cannot pay with their own keys, because %s is not set", ENCRYPTION_VARIABLE
        )
    return None


def _key_file(database: Path) -> Path:
    return database.with_name(database.name + FILE_SUFFIX)


def _make(path: Path) -> None:
    """Create the file with a new key. If two processes do this at once, both use the first key."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new_key().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, path)  # atomic: the file appears with its whole content
    finally:
        Path(name).unlink()


def _decoded(text: str) -> SecretBytes | None:
    try:
        key = SecretBytes(b64decode(text.replace("-", "+").replace("_", "/"), validate=True))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def _id_of(key: bytes) -> str:
    return sha256(b"wattfare encryption key id\0" + key).hexdigest()[:16]


def _bound_to(purpose: str) -> bytes:
    return f"wattfare:{purpose}".encode()


def _wrong_key() -> WattfareError:
    return invalid_request(
        f"{ENCRYPTION_VARIABLE} is invalid. It must be a comma-separated list of keys, each of "
        f"{KEY_BYTES} random bytes in base64. To make one, run: openssl rand -base64 32"
    )
