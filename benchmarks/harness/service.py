"""Runs `wattfare serve` in front of the fake upstream, with an app and connected users."""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattfare_mw.service import AppKeys, create_keys

from . import load
from .load import DIRECT, Load
from .processes import ROOT, Server, environment, free_port, running

#: With this many users, two concurrent calls rarely have the same user.
USERS = 64


@dataclass
class Service:
    """A running service and its app."""

    server: Server
    keys: AppKeys

    def completions(self, users: int = USERS, **more: Any) -> Load:
        return self._paid(load.completions(DIRECT, users=users, **more))

    def streams(self, users: int = USERS, **more: Any) -> Load:
        return self._paid(load.streams(DIRECT, users=users, **more))

    def connect(self, users: int = USERS) -> None:
        """Connect this many users with a cap: ``user_1``, ``user_2``, …."""
        for number in range(1, users + 1):
            secret = self.keys.secret_key
            session = self._post("/sessions", {"appUserId": f"user_{number}"}, secret)
            self._post("/connections", {"monthlyUsd": 1_000_000}, session["token"])

    def _paid(self, what: Load) -> Load:
        headers = {**what.headers, "authorization": f"Bearer {self.keys.secret_key}"}
        return Load(
            what.path, what.body, headers, what.expect, what.method, what.connections, what.users
        )

    def _post(self, path: str, body: Any, credential: str) -> Any:
        request = urllib.request.Request(
            f"{self.server.url}/api/v1{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {credential}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def data_folder() -> Iterator[Path]:
    """A temporary folder on the project's disk. The system's temporary folder may be in memory."""
    with tempfile.TemporaryDirectory(prefix=".data-", dir=ROOT / "benchmarks") as folder:
        yield Path(folder)


def sqlite(folder: Path, name: str = "ledger") -> str:
    return f"sqlite:///{folder / name}.db"


@contextmanager
def serving(
    name: str, database: str, upstream_url: str, *, users: int = USERS
) -> Iterator[Service]:
    """Run the service in one process with durable commits, its default, and connect this many
    users."""
    keys = create_keys(database, "bench", "test")
    with process(name, database, upstream_url) as server:
        service = Service(server, keys)
        service.connect(users)
        yield service


@contextmanager
def process(name: str, database: str, upstream_url: str) -> Iterator[Server]:
    """Run a process of the service with this database."""
    port = free_port()
    options = ["--port", str(port), "--database", database, "--stop-grace", "0"]
    # The load comes from a few users, so their limits must be high.
    options += ["--calls-per-minute-per-user", "1000000", "--calls-per-minute-per-app", "10000000"]
    options += ["--max-calls-per-user", "10000", "--max-calls-per-app", "10000"]
    command = [sys.executable, "-m", "wattfare_mw.cli", "serve", *options]
    command += ["--upstream", f"{upstream_url}/api/v1"]
    with running(name, port, command, env=environment()) as server:
        yield server
