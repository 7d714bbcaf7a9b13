"""The benchmarks run: one short row of each kind. Their times are not judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.service import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_row_of_each_kind_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "works" in run.stdout
