"""What the processes of one test run share.

With pytest-xdist, a run has a controller and several workers. The controller creates a folder, and
each worker gets its path. An expensive server is started once in a run, by the first worker that
needs it, and stops with the controller.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.patience import PATIENCE


class SharedRun:
    """One run of the tests, as each of its processes sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, start: Callable[[], Any]) -> Any:
        """Calls ``start`` once in this run, and returns its result in every process.

        Args:
            name: identifies what is started.
            start: returns a value that JSON can represent.
        """
        result = self.folder / f"{name}.json"
        with locked(self.folder / f"{name}.lock"):
            if not result.exists():
                result.write_text(json.dumps(start()))
            return json.loads(result.read_text())

    def at_end(self, *command: str) -> None:
        """Runs this command when the run ends, even if its processes are killed."""
        file, _ = tempfile.mkstemp(suffix=".end", dir=self.folder)
        os.write(file, shlex.join(command).encode())
        os.close(file)


@contextmanager
def new_run() -> Iterator[SharedRun]:
    """A run that lasts until the block ends."""
    folder = tempfile.mkdtemp(prefix="wattfare-tests-")
    script = 'cd "$0"; for command in *.end; do test -e "$command" && sh "$command"; done; cd /; '
    with at_the_end(script + 'rm -rf "$0"', folder):
        yield SharedRun(Path(folder))


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Lets one process at a time into the block."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def at_the_end(script: str, name: str, *arguments: str) -> Iterator[None]:
    """Runs a shell script when the block ends or when this process dies. ``$0`` is the name."""
    shell = subprocess.Popen(
        ["sh", "-c", f"cat; {script}", name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the group of this process does not stop it
    )
    assert shell.stdin is not None
    try:
        yield
    finally:
        shell.stdin.close()
        shell.wait(PATIENCE)
