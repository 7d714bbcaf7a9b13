"""The faults, and the tests that must see them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what no longer holds.
        file: that the fault is put into.
        old: what stands there, once in this file.
        new: what takes its place.
        tests: as pytest names them; one of them fails.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS: list[Mutant] = []
