"""A Redis of the tests' own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from .postgres import PATIENCE, at_the_end, install
from .service import eventually

MISSING = (
    "Redis is not installed: rate limits are tested in memory only. "
    "To have the rest: apt-get install redis-server (Debian), and the extra `redis`."
)


@contextmanager
def run_redis() -> Iterator[str]:
    """The URL of a Redis, while the block lasts; the test is skipped where there is none."""
    pytest.importorskip("redis", reason=MISSING)
    if not shutil.which("redis-server") and os.environ.get("CI"):
        install("redis-server")
    if not shutil.which("redis-server"):
        pytest.skip(MISSING)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), *options], stdout=subprocess.DEVNULL
    )

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        assert process.poll() is None
        return False

    with at_the_end('kill "$1"', "redis", str(process.pid)):
        eventually(listens)
        yield f"redis://127.0.0.1:{port}"
    process.wait(PATIENCE)
