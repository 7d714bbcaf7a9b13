"""A Redis for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress

import pytest

from .ports import free_port
from .postgres import install
from .service import eventually
from .shared_run import SharedRun

MISSING = (
    "Redis is not installed: rate limits are tested in memory only. "
    "To run the rest: apt-get install redis-server (Debian), and the extra `redis`."
)


def shared_redis(run: SharedRun) -> str:
    """The URL of this run's Redis. Skips the test if Redis is not installed."""
    pytest.importorskip("redis", reason=MISSING)
    if not shutil.which("redis-server") and os.environ.get("CI"):
        install("redis-server")
    if not shutil.which("redis-server"):
        pytest.skip(MISSING)

    def start() -> int:
        port = free_port()
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "yes"]
        program = ["redis-server", "--port", str(port), "--dir", str(run.folder), *options]
        run.at_end("redis-cli", "-p", str(port), "shutdown", "nosave")
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL, timeout=60)

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        eventually(listens)
        return port

    return f"redis://127.0.0.1:{run.once('redis', start)}"
