"""The parts of a request whose cost has no bound."""

from __future__ import annotations

from typing import NamedTuple

#: The maximum number of held fields that an error or a log line names.
MAX_NAMED = 8


class Held(NamedTuple):
    """A field of a request whose cost has no bound, and why."""

    name: str
    because: str


class Found(NamedTuple):
    """The parts of a value whose cost has no bound: the first held fields, and an unknown field."""

    held: tuple[Held, ...] = ()
    unknown: str | None = None


def both(one: Found | None, other: Found | None) -> Found | None:
    """Combine the parts of two values."""
    if one is None or other is None:
        return one or other
    return Found((one.held + other.held)[:MAX_NAMED], one.unknown or other.unknown)
