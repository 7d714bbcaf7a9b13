"""Starts and stops server processes, and measures the CPU time and the memory of each with its
children."""

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
#: How long a server may take to start, in seconds. LiteLLM takes most of a minute.
START_SECONDS = 180
_TICK = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A server does not work, so it cannot be measured."""


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
        """The CPU time of the process and its children since its start, in seconds."""
        total = 0
        for pid in _family(self.process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def memory(self) -> int:
        """The memory of the process and its children, in bytes. Shared memory counts once."""
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
    """This process's environment variables, without those that configure Wattfare or the
    benchmarks."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("WATTFARE_", "BENCH_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **more}


def allow_many_files() -> None:
    """Allow as many open files as the system permits. Servers inherit this limit."""
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
    """Run a server until the end of the block. The block begins when the server accepts
    connections."""
    with tempfile.TemporaryFile() as log:  # a full pipe would block the server
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=env or environment()
        )
        server = Server(name, port, process)
        try:
            if not _comes_up(server):
                log.seek(0)
                output = log.read().decode(errors="replace")[-4000:]
                raise BenchError(f"{name} did not start:\n{output}")
            yield server
        finally:
            _stop(process)


def _comes_up(server: Server) -> bool:
    deadline = time.monotonic() + START_SECONDS
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


# -- the servers


@contextmanager
def upstream() -> Iterator[Server]:
    """The mock upstream."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", str(port)]
    with running("upstream", port, command) as server:
        yield server


@contextmanager
def asgi(name: str, app: str, upstream_url: str, **env: str) -> Iterator[Server]:
    """uvicorn with one worker and the app that the function ``app`` (``module:function``)
    returns."""
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
    """gunicorn with one gthread worker and the app that the function ``app`` returns."""
    port = free_port()
    options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread"]
    more = ["--threads", "16", "--keep-alive", "75", "--graceful-timeout", "1"]
    command = [sys.executable, "-m", "gunicorn", *options, *more, f"benchmarks.{app}()"]
    with running(name, port, command, env=environment(BENCH_UPSTREAM=upstream_url)) as server:
        yield server
