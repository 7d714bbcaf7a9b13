"""Counts instructions with callgrind, for costs that are too small to time. A busy machine does not
change the counts.

One process runs the case N times, and another one its baseline N times (the bare app, for a request
to the app's other paths). The difference divided by N is the cost without the start of the process.
The stored counts are valid for one build of Python only, which is stored with them.
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
    """The instructions of one call."""
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind is not installed. On Debian, type: apt-get install valgrind")
    return (_total(what, times, 0) - _total(what, 0, times)) / times


def build() -> dict[str, str]:
    """The versions on which the counts depend, besides our own code."""
    return {
        "python": f"{platform.python_version()} {sysconfig.get_config_var('CC')}".split(" -")[0],
        "machine": platform.machine(),
        "msgspec": metadata.version("msgspec"),
    }


def kept() -> dict[str, float]:
    """The stored counts. Empty if they come from another build."""
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
        # A fixed seed gives the same order of sets, and so the same count, each time.
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
