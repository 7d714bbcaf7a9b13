"""Install one locked set of requirements, then this project: ``python install.py demo``.

The registry may lack a version that the lock names. Then the versions that pyproject.toml allows
are installed, and one line says so. A file whose hash is not in the lock stays an error.

Make installs with pip, into the environment of this Python. Nox installs with uv, which is faster:
``python install.py test --uv .nox/other_aiohttp``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What pip and uv say of a version that the registry lacks.
LACKING = re.compile(
    r"No matching distribution found for (\S+)|No solution found.*?(\w\S*==[^\s,]+)", re.DOTALL
)


def main() -> int:
    """Install what the command line names; the exit status is that of pip or uv."""
    parser = argparse.ArgumentParser(description="Install a locked set, then this project.")
    parser.add_argument("name", help="the set: demo for requirements/demo.txt")
    parser.add_argument("--uv", metavar="ENVIRONMENT", help="use uv, for this environment")
    given = parser.parse_args()
    return install(given.name, given.uv)


def install(name: str, uv: str | None = None) -> int:
    """Install the set of this name, with pip, or with uv into the environment ``uv``."""
    tool = ["pip", "install"] if uv is None else ["uv", "pip", "install", "--python", uv]
    command = [sys.executable, "-m", *tool, "--quiet"]
    lock = ROOT / "requirements" / f"{name}.txt"
    # The lock names every package, so that nothing need look for dependencies.
    locked = ["--require-hashes", "--no-deps", "--requirement", str(lock)]
    done = subprocess.run([*command, *locked], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode and (lacking := LACKING.search(done.stderr)):
        which = "lowest" if name == "lowest" else "newest"
        print(
            f"The registry lacks {lacking[1] or lacking[2]} of {lock.relative_to(ROOT)}: "
            f"installing the {which} versions that pyproject.toml allows.",
            flush=True,
        )
        return install_ranges(name, command, with_pip=uv is None)
    sys.stderr.write(done.stderr)
    # The lock has the build requirements too: no isolated environment is needed.
    project = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    return done.returncode or run(*command, *project)


def install_ranges(name: str, command: list[str], *, with_pip: bool) -> int:
    """Install what pyproject.toml asks for, in place of the lock."""
    if with_pip and (status := run(*command, "--upgrade", "pip>=25.1")):  # it knows --group
        return status
    group = ["--group", f"{ROOT / 'pyproject.toml'}:{'suite' if name == 'lowest' else name}"]
    if name == "lowest":  # as `make lock` does it
        lowest = ["--resolution", "lowest-direct", "--editable", f"{ROOT}[all]"]
        return run(*command, "--upgrade", *lowest, *group)
    return run(*command, "--upgrade", "--editable", str(ROOT), *group)


def run(*command: str) -> int:
    """Run this command; its exit status."""
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
