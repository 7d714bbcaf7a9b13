"""A real Chromium, driven by Playwright: Debian's, or the one in the variable CHROMIUM."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from .postgres import install
from .shared_run import SharedRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Where Chromium may be, best first.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "Chromium is not installed, and it could not be installed here. Install it, for example with "
    "`apt-get install chromium` (Debian), or name one: `make test-browsers CHROMIUM=/path/to/it`."
)
ARGUMENTS = [
    "--disable-dev-shm-usage",  # small in many containers
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


def chromium(run: SharedRun) -> str:
    """The path of Chromium. It is installed with apt if necessary."""
    path = run.once("chromium", _find_or_install)
    if path is None:
        pytest.exit(MISSING, returncode=1)
    return path


def _find_or_install() -> str | None:
    path = find()
    if path is None and _can_install():
        install("chromium")
        path = find()
    return path


def find() -> str | None:
    """The path of an installed Chromium."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None)


def _can_install() -> bool:
    if os.environ.get("CHROMIUM") or not shutil.which("apt-get"):
        return False
    if os.geteuid() == 0:
        return True
    sudo = ["sudo", "--non-interactive", "true"]  # a test must never ask for a password
    return bool(shutil.which("sudo")) and not subprocess.run(sudo, check=False).returncode


@contextmanager
def run_chromium(path: str) -> Iterator[Browser]:
    """Runs a browser until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
