"""An app under a real server, in its own process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.patience import PATIENCE
from support.ports import free_port
from support.service import AppKeys, Service, environment

_ROOT = Path(__file__).parents[2]
_APPS = _ROOT / "tests" / "servers" / "apps"
_LISTENING = re.compile(r"(?:Listening at|Running on|running on):? (http://127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Pair:
    """A framework's app, and the server that runs it.

    Attributes:
        command: the command of the server; ``{port}`` is its port.
        tells_port: True if it prints its port when started with port 0.
    """

    name: str
    command: str
    tells_port: bool = True


_GUNICORN = "-m gunicorn -b 127.0.0.1:{port} --graceful-timeout 5 --workers 2"

PAIRS = [
    Pair("flask-gunicorn-sync", f"{_GUNICORN} --worker-class sync flask_app:app"),
    Pair("flask-gunicorn-gthread", f"{_GUNICORN} --worker-class gthread --threads 8 flask_app:app"),
    # The middleware itself, loaded before the workers are forked.
    Pair("flask-gunicorn-preload", f"{_GUNICORN} --threads 8 --preload flask_app:wattfare"),
    Pair(
        "starlette-uvicorn",
        "-m uvicorn --port {port} --timeout-graceful-shutdown 5 starlette_app:app",
    ),
    Pair(
        "litestar-granian",
        "-m granian --interface asgi --port {port} --workers-kill-timeout 5 litestar_app:app",
        tells_port=False,
    ),
    Pair("fastapi-hypercorn", "-m hypercorn --bind 127.0.0.1:{port} fastapi_app:app"),
]


@dataclass
class Server:
    """A running app."""

    url: str
    process: subprocess.Popen[str]
    log: list[str]


@contextmanager
def run_server(pair: Pair, service: Service, keys: AppKeys, home: Path) -> Iterator[Server]:
    """Runs the app with these keys in front of this service, until the block ends. Then it must
    exit by itself without any complaint."""
    port = 0 if pair.tells_port else free_port()
    env = environment(
        {
            "WATTFARE_SECRET_KEY": keys.secret_key,
            "WATTFARE_BASE_URL": service.url,
            "HOME": str(home),
            # Unclosed resources must cause a warning.
            "PYTHONWARNINGS": "default::ResourceWarning",
        }
    )
    env["PYTHONPATH"] = os.pathsep.join(
        [str(_APPS), str(_ROOT / "adapters"), env["PYTHONPATH"]],
    )
    process = subprocess.Popen(
        [sys.executable, *pair.command.format(port=port).split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=home,
    )
    log: list[str] = []
    found = threading.Event()
    reader = threading.Thread(target=_read, args=(process, log, found), daemon=True)
    reader.start()
    try:
        assert found.wait(PATIENCE), "".join(log)
        told = [match[1] for line in log if (match := _LISTENING.search(line))]
        assert told, f"{pair.name} did not start: {''.join(log)}"
        url = told[0] if pair.tells_port else f"http://127.0.0.1:{port}"
        _wait_until_open(url, process, log)
        yield Server(url, process, log)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        reader.join(PATIENCE)
        output = "".join(log)
        assert code in (0, -signal.SIGTERM), output
        assert not [line for line in log if _is_complaint(line)], output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)
        reader.join(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()


def _is_complaint(line: str) -> bool:
    if "ResourceWarning: unclosed <socket" in line:
        # the server leaves closing its own listener to the end of the process
        return "raddr" in line
    told = ("Traceback", "ResourceWarning: unclosed", "Unclosed", "never awaited")
    return any(word in line for word in told)


def _read(process: subprocess.Popen[str], log: list[str], found: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        if _LISTENING.search(line):
            found.set()
    found.set()


def _wait_until_open(url: str, process: subprocess.Popen[str], log: list[str]) -> None:
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(address, timeout=1):
            return
    raise AssertionError(f"no server listens at {url}: {''.join(log)}")
