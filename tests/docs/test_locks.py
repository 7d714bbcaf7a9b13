"""The lock files match pyproject.toml: each requirement has a pin that satisfies it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETS = ("demo", "test", "bench", "fuzz", "tools", "browsers", "libraries", "libraries-openai-2")
LOCKS = {name: name for name in SETS} | {"lowest": "suite"}


def _required(group: str) -> Iterator[Requirement]:
    for item in PYPROJECT["dependency-groups"][group]:
        if isinstance(item, dict):
            yield from _required(item["include-group"])
        else:
            yield from _with_extras(Requirement(item))


def _with_extras(requirement: Requirement) -> Iterator[Requirement]:
    """The requirement itself, or the requirements of this project's extras that it names."""
    if requirement.name != PROJECT["name"]:
        yield requirement
        return
    for extra in requirement.extras:
        for item in PROJECT["optional-dependencies"][extra]:
            yield from _with_extras(Requirement(item))


@pytest.mark.parametrize(("lock", "group"), LOCKS.items(), ids=LOCKS)
def test_lock_satisfies_pyproject(lock: str, group: str) -> None:
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
def test_lock_names_no_host_or_path(lock: str) -> None:
    """A private registry or a path would work on one machine only."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert not re.search(r"^-|://|file:", text, re.MULTILINE)


def test_lowest_versions_are_the_declared_ones() -> None:
    text = (ROOT / "requirements" / "lowest.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    wanted = [*map(Requirement, PROJECT["dependencies"])]
    (project, *_) = map(Requirement, PYPROJECT["dependency-groups"]["suite"][:1])
    wanted += _with_extras(project)
    for requirement in wanted:
        if requirement.name == "openai":
            # The test suite needs openai 3. `make test-libraries` also tests openai 2.
            continue
        (floor,) = [one for one in requirement.specifier if one.operator == ">="]
        pin = pins[canonicalize_name(requirement.name)]
        assert Version(pin) == Version(floor.version), f"run `make lock`: {requirement}, {pin}"


# -- what install.py does if a locked version is unavailable

PIP_LACKS = "ERROR: No matching distribution found for idna==3.99"
UV_LACKS = """error: No solution found when resolving dependencies
  cause: Because there is no version of idna==3.99 and you require idna==3.99, we can conclude"""
UV_LACKS_ALL = """error: No solution found when resolving dependencies
  cause: Because idna was not found in the package registry and you require idna==3.99, we can"""
PIP_OTHER_HASH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
UV_OTHER_HASH = """error: Failed to download `idna==3.20`
  cause: Hash mismatch for `idna==3.20`"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function of install.py. Its commands are recorded, and the first fails with ``says``."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def install(says: str, *arguments: str) -> tuple[int, list[str]]:
        ran: list[str] = []

        def run(command: list[str], **options: Any) -> Any:
            ran.append(" ".join(command))
            fails = says if len(ran) == 1 else ""
            return subprocess.CompletedProcess(command, int(bool(fails)), stderr=fails)

        monkeypatch.setattr(module.subprocess, "run", run)
        return module.install(*arguments), ran

    return install


@pytest.mark.parametrize(
    ("says", "name", "uv"),
    [
        (PIP_LACKS, "test", None),
        (UV_LACKS, "test", "environment"),
        (UV_LACKS_ALL, "lowest", "environment"),
    ],
)
def test_version_missing_from_the_registry_is_skipped(
    install: Any, capsys: Any, says: str, name: str, uv: str | None
) -> None:
    status, ran = install(says, name, uv)
    assert status == 0
    assert f"lacks idna==3.99 of requirements/{name}.txt" in capsys.readouterr().out
    assert "--require-hashes" in ran[0]
    assert not any("--no-deps" in command for command in ran[1:])
    assert f":{LOCKS[name]}" in ran[-1]
    assert ("--resolution lowest-direct" in ran[-1]) is (name == "lowest")


@pytest.mark.parametrize("says", [PIP_OTHER_HASH, UV_OTHER_HASH])
def test_file_with_another_hash_is_not_installed(install: Any, capsys: Any, says: str) -> None:
    status, ran = install(says, "test")
    assert status == 1
    assert len(ran) == 1
    assert says in capsys.readouterr().err
