"""Instructions, counted by callgrind: what is too small to time, and the same on a busy machine.

A process runs the thing N times, another one as often what it is compared with (for a request
that is not ours: the bare app). Their difference, through N, is what it takes, without the start.
The counts that are kept hold for one build of Python only, which is kept with them.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from .processes import ROOT, BenchError, environment

KEPT = ROOT / "benchmarks" / "counts.json"


def count(what: str, times: int) -> float:
    """The instructions of one of it."""
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind is not installed (Debian: apt-get install valgrind)")
    return (_total(what, times, 0) - _total(what, 0, times)) / times


def build() -> dict[str, str]:
    """What the counts depend on beside our own code."""
    return {
        "python": f"{platform.python_version()} {sysconfig.get_config_var('CC')}".split(" -")[0],
        "machine": platform.machine(),
        "msgspec": metadata.version("msgspec"),
    }


def kept() -> dict[str, float]:
    """The counts of the repository, if this build is the one that they were taken with."""
    if not KEPT.exists():
        return {}
    read = json.loads(KEPT.read_text())
    return read["instructions"] if read["build"] == build() else {}


def keep(counts: dict[str, float]) -> None:
    instructions = {what: round(number) for what, number in counts.items()}
    text = json.dumps({"build": build(), "instructions": instructions}, indent=2)
    KEPT.write_text(text + "\n")


def _total(what: str, times: int, bare: int) -> int:
    python = Path(sys.executable)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(python)]
    done = subprocess.run(
        [*command, "-m", "benchmarks.counted", what, str(times), str(bare)],
        cwd=ROOT,
        # So that the order in dicts and sets, and with it the count, is the same each time.
        env=environment(PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise BenchError(f"valgrind failed: {done.stderr[-1500:]}")
    return int(found[1])
