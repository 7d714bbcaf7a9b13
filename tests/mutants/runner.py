"""Puts each fault into a copy of the code, and runs the tests that must detect it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
#: The files of the project that the tests need.
COPIED = ("wattfare_mw", "adapters", "tests", "examples", "pyproject.toml")
#: Seconds that the tests of one mutant may take.
PATIENCE = 300
#: The meanings of pytest's exit codes.
PASSED, FAILED = 0, 1


def place_of(mutant: Mutant, root: Path = ROOT) -> tuple[Path, str]:
    """The file of a mutant and its text. The line to change must occur exactly once."""
    file = root / mutant.file
    text = file.read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise AssertionError(
            f"{mutant.name}: the text to change is {found} times in {mutant.file}, and must be"
            " there once. Change the row in tests/mutants/table.py."
        )
    return file, text


def run(mutants: Iterable[Mutant] = MUTANTS, jobs: int | None = None) -> list[str]:
    """Runs the tests of each mutant. Returns the survivors and all other errors."""
    chosen = list(mutants)
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        sound = pool.submit(_sound, chosen)
        faults = [fault for fault in pool.map(_survives, chosen) if fault]
        if (fault := sound.result()) is not None:
            faults.append(fault)
    return faults


def _sound(mutants: list[Mutant]) -> str | None:
    """Checks that all the tests pass without a fault. Otherwise a failure would prove nothing."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    code, output = _pytest(ROOT, tests)
    return None if code == PASSED else f"Without any mutant, the tests do not pass:\n{output}"


def _survives(mutant: Mutant) -> str | None:
    with tempfile.TemporaryDirectory(prefix="wattfare-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                hidden = shutil.ignore_patterns("__pycache__", "node_modules", "*.db")
                shutil.copytree(source, copy / name, ignore=hidden)
            else:
                shutil.copy(source, copy / name)
        file, text = place_of(mutant, copy)
        file.write_text(text.replace(mutant.old, mutant.new))
        code, output = _pytest(copy, list(mutant.tests), "-x")
    if code == FAILED:
        print(f"caught    {mutant.name}", flush=True)
        return None
    print(f"SURVIVED  {mutant.name}", flush=True)
    return f"{mutant.name}: pytest ended with {code}, not with a failed test.\n{output}"


def _pytest(root: Path, tests: list[str], *options: str) -> tuple[int, str]:
    path = os.pathsep.join([str(root), str(root / "adapters")])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *tests]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-30:])
