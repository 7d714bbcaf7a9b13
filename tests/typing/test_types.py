"""Type checkers accept the public types and the examples. `make lint` runs pyright on them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("tests/typing/clients.py", "tests/typing/middleware.py", "examples/*.py")


@pytest.mark.long
def test_mypy_accepts_the_files() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *_expanded(FILES)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, (ROOT, ROOT / "adapters")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_pyright_checks_the_same_files() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert settings["typeCheckingMode"] == "strict"
    assert {*_expanded(FILES)} <= {*_expanded(settings["include"])}


def _expanded(patterns: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        path = ROOT / pattern
        paths = path.rglob("*.py") if path.is_dir() else ROOT.glob(pattern)
        found += sorted(str(path.relative_to(ROOT)) for path in paths)
    return found
