"""Recovery codes: what a person writes down, to sign in without a passkey."""

from __future__ import annotations

import secrets

from .. import keys

#: How many a person gets.
COUNT = 10
#: The letters and digits of a code. None of them looks like another (Crockford's base 32).
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_CHARACTERS = 28  # 140 bits
_LOOK_ALIKE = str.maketrans("oil", "011")


def new_codes() -> list[str]:
    """Fresh codes, in the form in which a person gets them: ``8c4k-q2vw-…``."""
    return [_grouped("".join(map(secrets.choice, [_ALPHABET] * _CHARACTERS))) for _ in range(COUNT)]


def hash_of(code: str) -> str:
    """The form in which a code is kept. How a person groups the characters does not count.

    A plain hash is enough, since nobody can try 140 bits.
    """
    plain = "".join(each for each in code.lower() if each.isalnum())
    return keys.digest(f"recovery code {plain.translate(_LOOK_ALIKE)}")


def _grouped(code: str) -> str:
    return "-".join(code[at : at + 4] for at in range(0, len(code), 4))
