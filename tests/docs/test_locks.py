"""The locked files are as new as pyproject.toml: each requirement has a pin that satisfies it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKS = {name: name for name in ("demo", "test", "bench", "fuzz", "tools")} | {"lowest": "suite"}


def _required(group: str) -> Iterator[Requirement]:
    for item in PYPROJECT["dependency-groups"][group]:
        if isinstance(item, dict):
            yield from _required(item["include-group"])
        else:
            yield from _with_extras(Requirement(item))


def _with_extras(requirement: Requirement) -> Iterator[Requirement]:
    """The requirement, or those of this project's extras that it stands for."""
    if requirement.name != PROJECT["name"]:
        yield requirement
        return
    for extra in requirement.extras:
        for item in PROJECT["optional-dependencies"][extra]:
            yield from _with_extras(Requirement(item))


@pytest.mark.parametrize(("lock", "group"), LOCKS.items(), ids=LOCKS)
def test_the_lock_has_what_pyproject_asks_for(lock: str, group: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    wanted = [*map(Requirement, PROJECT["dependencies"]), *_required(group)]
    missing = [
        str(requirement)
        for requirement in wanted
        if not any(
            name == canonicalize_name(requirement.name)
            and requirement.specifier.contains(version, prereleases=True)
            for name, version in pins
        )
    ]
    assert not missing, f"run `make lock`: requirements/{lock}.txt lacks {missing}"


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_place(lock: str) -> None:
    """A registry of its own, or a path, would hold on one machine only."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert not re.search(r"^-|://|file:", text, re.MULTILINE)


def test_the_lowest_versions_are_those_declared() -> None:
    text = (ROOT / "requirements" / "lowest.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    wanted = [*map(Requirement, PROJECT["dependencies"])]
    wanted += _with_extras(Requirement(f"{PROJECT['name']}[all]"))
    for requirement in wanted:
        (floor,) = [one for one in requirement.specifier if one.operator == ">="]
        pin = pins[canonicalize_name(requirement.name)]
        assert Version(pin) == Version(floor.version), f"run `make lock`: {requirement}, {pin}"
