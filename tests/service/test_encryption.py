"""The encryption of stored keys: purposes, rotation, and the source of the encryption keys."""

from __future__ import annotations

import os
import stat
from base64 import b64encode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.payers.encryption import (
    FILE_SUFFIX,
    KEY_BYTES,
    Keyring,
    Sealed,
    UnreadableError,
    find_keyring,
    key_beside,
    read_keys,
)

SECRET = b"sk-or-v1-a-key-of-a-payer"
OLD, NEW = bytes(range(KEY_BYTES)), bytes(range(100, 100 + KEY_BYTES))


def test_secret_needs_the_key_and_purpose_that_encrypted_it() -> None:
    ring = Keyring([OLD])
    sealed = ring.seal(SECRET, "funding:1")
    assert ring.open(sealed, "funding:1") == SECRET
    assert SECRET not in sealed.ciphertext
    assert ring.seal(SECRET, "funding:1").ciphertext != sealed.ciphertext


def test_ciphertext_of_another_row_is_not_decrypted() -> None:
    ring = Keyring([OLD])
    sealed = ring.seal(SECRET, "funding:1")
    with pytest.raises(UnreadableError):
        ring.open(sealed, "funding:2")


def test_changed_ciphertext_is_not_decrypted() -> None:
    ring = Keyring([OLD])
    sealed = ring.seal(SECRET, "funding:1")
    for place in range(len(sealed.ciphertext)):
        changed = bytearray(sealed.ciphertext)
        changed[place] ^= 1
        with pytest.raises(UnreadableError):
            ring.open(Sealed(bytes(changed), sealed.key_id), "funding:1")
    for length in range(len(sealed.ciphertext)):
        with pytest.raises(UnreadableError):
            ring.open(Sealed(sealed.ciphertext[:length], sealed.key_id), "funding:1")


def test_first_key_encrypts_and_all_keys_decrypt() -> None:
    old = Keyring([OLD]).seal(SECRET, "p")
    both = Keyring([NEW, OLD])
    assert both.open(old, "p") == SECRET
    new = both.seal(SECRET, "p")
    assert new.key_id != old.key_id
    assert Keyring([NEW]).open(new, "p") == SECRET
    with pytest.raises(UnreadableError):
        Keyring([NEW]).open(old, "p")


def test_keys_are_read_from_a_list_in_either_base64() -> None:
    text = f"{b64encode(OLD).decode()}, {urlsafe_b64encode(NEW).decode()}\n"
    assert read_keys(text) == (OLD, NEW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a passphrase",
        b64encode(b"too short").decode(),
        b64encode(bytes(33)).decode(),
        b64encode(OLD).decode() + ",",
        OLD.hex(),
        "é" * 44,
    ],
)
def test_invalid_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(WattfareError) as caught:
        read_keys(text)
    assert "WATTFARE_ENCRYPTION_KEY" in caught.value.message
    assert "openssl rand -base64 32" in caught.value.message
    assert len(text) < 5 or text not in caught.value.message


def test_repr_hides_the_keys() -> None:
    keys = read_keys(b64encode(OLD).decode())
    ring = Keyring(keys)
    sealed = ring.seal(SECRET, "p")
    shown = f"{keys!r} {ring!r} {ring.open(sealed, 'p')!r} {sealed!r} {ring.first_id}"
    assert repr(OLD)[2:-1] not in shown
    assert SECRET.decode() not in shown


def test_key_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    database = tmp_path / "wattfare.db"
    keys = key_beside(database)
    file = tmp_path / f"wattfare.db{FILE_SUFFIX}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key_beside(database) == keys
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_concurrent_starts_share_one_key_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: key_beside(tmp_path / "wattfare.db"), range(64)))
    assert len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="files have no modes")
def test_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_beside(tmp_path / "wattfare.db")
    file = tmp_path / f"wattfare.db{FILE_SUFFIX}"
    file.chmod(0o640)
    with pytest.raises(WattfareError, match="chmod 600"):
        key_beside(tmp_path / "wattfare.db")
    file.chmod(0o600)
    file.write_text("nonsense")
    with pytest.raises(WattfareError, match="does not hold an encryption key") as caught:
        key_beside(tmp_path / "wattfare.db")
    assert "nonsense" not in str(caught.value)


def test_unwritable_folder_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WattfareError, match="WATTFARE_ENCRYPTION_KEY"):
        key_beside(tmp_path / "missing" / "wattfare.db")


def test_postgresql_needs_the_variable_if_payers_bring_keys() -> None:
    url = "postgresql://user@host/database"
    assert find_keyring(url, None, needed=True) is None
    assert find_keyring(url, [OLD], needed=True, demanded=True) is not None
    with pytest.raises(WattfareError, match="With PostgreSQL") as caught:
        find_keyring(url, None, needed=True, demanded=True)
    assert "WATTFARE_ENCRYPTION_KEY" in caught.value.message


def test_no_key_file_is_created_if_payers_bring_no_keys(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'wattfare.db'}"
    assert find_keyring(url, None, needed=False) is None
    assert not list(tmp_path.iterdir())
    assert find_keyring(url, None, needed=True) is not None
    # Keys stored earlier still work.
    assert find_keyring(url, None, needed=False) is not None


def test_in_memory_database_has_an_in_memory_key() -> None:
    assert find_keyring("sqlite://", None, needed=True) is not None
    assert find_keyring("sqlite:///:memory:", None, needed=True) is not None
