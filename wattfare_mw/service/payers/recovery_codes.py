"""Recovery codes, which a person writes down to sign in without a passkey."""

from __future__ import annotations

import secrets

from .. import keys

#: The number of codes that a person gets.
COUNT = 10
#: The characters of a code. No two of them look alike (Crockford's base 32).
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_CHARACTERS = 28  # 140 bits
_LOOK_ALIKE = str.maketrans("oil", "011")


def new_codes() -> list[str]:
    """New codes, as shown to a person: ``8c4k-q2vw-…``."""
    return [_grouped("".join(map(secrets.choice, [_ALPHABET] * _CHARACTERS))) for _ in range(COUNT)]


def hash_of(code: str) -> str:
    """The stored hash of a code. Spaces, hyphens and upper case are ignored.

    A plain hash is enough, because 140 bits cannot be guessed.
    """
    plain = "".join(each for each in code.lower() if each.isalnum())
    return keys.digest(f"recovery code {plain.translate(_LOOK_ALIKE)}")


def _grouped(code: str) -> str:
    return "-".join(code[at : at + 4] for at in range(0, len(code), 4))
