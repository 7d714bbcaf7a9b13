"""Describes the machine, the interpreter and the packages."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "wattfare-mw",
    "uvicorn",
    "uvloop",
    "httptools",
    "aiohttp",
    "httpx",
    "httpx2",
    "msgspec",
    "gunicorn",
    "starlette",
    "whitenoise",
    "sqlalchemy",
    "asyncpg",
)


def describe() -> dict[str, str]:
    """The facts by their names."""
    facts = {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
        "wrk": _first_line("wrk", "-v").partition(" Copyright")[0],
        "uvicorn's event loop and parser": _loop(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def busy() -> float:
    """The share of the machine that other processes use, from 0 to 1. Waits a second to measure
    it."""
    before, idle_before = _ticks()
    time.sleep(1)
    after, idle_after = _ticks()
    return 1 - (idle_after - idle_before) / max(1, after - before)


def _ticks() -> tuple[int, int]:
    numbers = [int(n) for n in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return sum(numbers), numbers[3] + numbers[4]


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _loop() -> str:
    found = {name: _installed(name) for name in ("uvloop", "httptools")}
    loop = "uvloop" if found["uvloop"] else "asyncio"
    return f"{loop}, {'httptools' if found['httptools'] else 'h11'}"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            cwd=Path(__file__).parent,
        )
    except OSError:
        return ""
    return (done.stdout or done.stderr).partition("\n")[0].strip()
