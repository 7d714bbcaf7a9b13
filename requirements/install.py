"""Install one locked set of requirements, then this project: ``python install.py demo``.

The registry may lack a version that the lock names. Then the newest versions that pyproject.toml
allows are installed, and one line says so. A file whose hash is not in the lock stays an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LACKING = re.compile(r"No matching distribution found for (\S+)")


def main(name: str) -> int:
    """Install the group of this name; the exit status is pip's."""
    lock = ROOT / "requirements" / f"{name}.txt"
    # The lock names every package, so that pip need not look for dependencies.
    locked = ["--require-hashes", "--no-deps", "--requirement", str(lock)]
    done = subprocess.run(pip(*locked), stderr=subprocess.PIPE, text=True, check=False)
    if lacking := LACKING.search(done.stderr):
        print(
            f"The registry lacks {lacking[1]} of {lock.relative_to(ROOT)}: "
            "installing the newest versions that pyproject.toml allows.",
            flush=True,
        )
        group = ["--group", f"{ROOT / 'pyproject.toml'}:{name}"]
        return run("--upgrade", "pip>=25.1") or run("--upgrade", "--editable", str(ROOT), *group)
    sys.stderr.write(done.stderr)
    # The lock has the build requirements too: no isolated environment is needed.
    project = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    return done.returncode or run(*project)


def pip(*arguments: str) -> list[str]:
    """The command line of ``pip install``."""
    options = ["--quiet", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "install", *options, *arguments]


def run(*arguments: str) -> int:
    """Run ``pip install``; its exit status."""
    return subprocess.run(pip(*arguments), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
