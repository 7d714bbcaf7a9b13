"""Installs the programs that are not Python packages."""

from __future__ import annotations

import os
import shutil
import subprocess

#: The Debian package of each program.
_DEBIAN = {"wrk": "wrk", "valgrind": "valgrind"}


def has(program: str) -> bool:
    return shutil.which(program) is not None


def install_missing(*programs: str) -> None:
    """Install these programs on Debian, or all, if this process is root or may use sudo."""
    missing = [_DEBIAN[program] for program in programs or _DEBIAN if not has(program)]
    if not missing or not has("apt-get"):
        return
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not has("sudo"):
        return
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        command = [*sudo, "apt-get", *arguments]
        print(f"$ {' '.join(command)}", flush=True)
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, check=False, timeout=600, capture_output=True, env=env)
