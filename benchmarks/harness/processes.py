"""Server processes: on a free port, ready before they are used, ended with the block, and what CPU
time and memory they take, with all their children."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: How long a server may take to start or stop, in seconds; LiteLLM takes most of a minute.
PATIENCE = 180
_TICK = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A subject does not do what it should: there is nothing to measure."""


@dataclass
class Server:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """What it has used since it was started, it and its children."""
        total = 0
        for pid in _family(self.process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def memory(self) -> int:
        """What is resident of it and its children, in bytes; what they share counts once."""
        total = 0
        for pid in _family(self.process.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in _family(int(child)))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's variables, less those that steer us from outside."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("WATTFARE_", "BENCH_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **more}


def allow_many_files() -> None:
    """As many open connections as the system lets us have; servers inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def running(
    name: str,
    port: int,
    command: list[str],
    *,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server, from the moment it takes connections until the block ends."""
    with tempfile.TemporaryFile() as log:  # a pipe would have to be emptied, at our expense
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=env or environment()
        )
        server = Server(name, port, process)
        try:
            if not _comes_up(server):
                log.seek(0)
                said = log.read().decode(errors="replace")[-4000:]
                raise BenchError(f"{name} does not start:\n{said}")
            yield server
        finally:
            _stop(process)


def _comes_up(server: Server) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# -- the servers that there are


@contextmanager
def upstream() -> Iterator[Server]:
    """The mock upstream."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", str(port)]
    with running("upstream", port, command) as server:
        yield server


@contextmanager
def asgi(name: str, app: str, upstream_url: str, **env: str) -> Iterator[Server]:
    """uvicorn with one worker around what the function ``app`` (``module:function``) makes."""
    port = free_port()
    options = ["--port", str(port), "--log-level", "warning", "--no-access-log", "--ws", "none"]
    more = ["--lifespan", "on", "--timeout-keep-alive", "75", "--factory"]
    more += ["--timeout-graceful-shutdown", "1"]
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.{app}", *options, *more]
    env["BENCH_UPSTREAM"] = upstream_url
    with running(name, port, command, env=environment(**env)) as server:
        yield server


@contextmanager
def wsgi(name: str, app: str, upstream_url: str) -> Iterator[Server]:
    """gunicorn's gthread with one worker around what the function ``app`` makes."""
    port = free_port()
    options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread"]
    more = ["--threads", "16", "--keep-alive", "75", "--graceful-timeout", "1"]
    command = [sys.executable, "-m", "gunicorn", *options, *more, f"benchmarks.{app}()"]
    with running(name, port, command, env=environment(BENCH_UPSTREAM=upstream_url)) as server:
        yield server
