"""The table of mutants fits the code, and the runner reports a survivor.

`make test-mutants` runs them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mutants import runner
from mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_fits_the_code(mutant: Mutant) -> None:
    file, text = runner.place_of(mutant)
    compile(text.replace(mutant.old, mutant.new), str(file), "exec")
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), test


def test_each_mutant_has_a_unique_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10


@pytest.mark.long
def test_runner_reports_a_surviving_mutant() -> None:
    harmless = Mutant(
        "nothing",
        "wattfare_mw/service/ids.py",
        "from __future__ import annotations",
        "from __future__ import annotations  # the same",
        ("tests/core/test_types.py",),
    )
    (fault,) = runner.run([harmless])
    assert "nothing: pytest ended with 0" in fault


def test_runner_refuses_an_unknown_name() -> None:
    command = [sys.executable, "-m", "mutants", "nonsense"]
    done = subprocess.run(
        command, cwd=ROOT / "tests", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "There is no mutant 'nonsense'" in done.stderr
