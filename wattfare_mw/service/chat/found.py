"""What in a request has no bound."""

from __future__ import annotations

from typing import NamedTuple

#: So many held fields of a request are named.
MAX_NAMED = 8


class Held(NamedTuple):
    """A field of a request whose cost has no bound, and why."""

    name: str
    because: str


class Found(NamedTuple):
    """What in a value has no bound: held fields (the first few), and a field that is not known."""

    held: tuple[Held, ...] = ()
    unknown: str | None = None


def both(one: Found | None, other: Found | None) -> Found | None:
    """What is found in two values."""
    if one is None or other is None:
        return one or other
    return Found((one.held + other.held)[:MAX_NAMED], one.unknown or other.unknown)
