"""`wattfare serve` as a real process on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from support.forked import ForkedCommand
from support.http_client import http_client, ssl_context
from support.patience import PATIENCE
from support.sqlite import sqlite_database, sqlite_transaction
from wattfare_mw.service import AppKeys, create_keys
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import accounts
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.records import Mode

T = TypeVar("T")


@dataclass
class Service:
    """A running service."""

    url: str
    database: str
    process: subprocess.Popen[str] | ForkedCommand
    log: list[str] = field(default_factory=list)

    @property
    def api(self) -> str:
        """The base of the protocol's paths, and an OpenAI client's ``base_url``."""
        return f"{self.url}/api/v1"

    def create_app(self, mode: Mode = "test", name: str = "test app") -> AppKeys:
        """A new app, created as ``wattfare apps create`` does, but without a new process."""
        if not self.database.startswith("sqlite:"):
            return create_keys(self.database, name, mode)
        app, keys = new_app(name, mode)
        sqlite_transaction(self.database, lambda sql: accounts.add_app(sql, app, utc_now()))
        return keys

    def app(self, mode: Mode = "test") -> App:
        """A new app, with the calls of its backend."""
        return App(self, self.create_app(mode))

    def stop(self) -> int:
        """Sends SIGTERM. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@dataclass
class App:
    """An app's backend, which calls by plain HTTP."""

    service: Service
    keys: AppKeys

    def __post_init__(self) -> None:
        self.http = http_client(base_url=self.service.api)

    @property
    def auth(self) -> dict[str, str]:
        """The header with the secret key."""
        return bearer(self.keys.secret_key)

    def token(self, user: str = "u1", **limit: Any) -> str:
        """A session token; ``monthlyUsd=…`` sets a limit."""
        body: dict[str, Any] = {"appUserId": user}
        if limit:
            body["requestLimit"] = limit
        answer = self.http.post("/sessions", json=body, headers=self.auth)
        assert answer.status_code == 200, answer.text
        return answer.json()["token"]

    def connect(self, user: str = "u1", **cap: Any) -> dict[str, Any]:
        """Connects this user; ``monthlyUsd=…`` sets a cap."""
        answer = self.http.post("/connections", json=cap, headers=bearer(self.token(user)))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def status(self, user: str = "u1") -> dict[str, Any]:
        """This user's ConnectionStatus."""
        answer = self.http.get(
            # httpx before 0.28 leaves a "%41" in `params` unchanged.
            f"/status?appUserId={quote(user, safe='')}",
            headers=self.auth,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, text: str = "one two three", user: str = "u1", **fields: Any) -> httpx.Response:
        """A whole inference call for this user."""
        return self.http.post(
            "/chat/completions", json=chat_body(text, **fields), headers=self.paid_by(user)
        )

    def paid_by(self, user: str) -> dict[str, str]:
        """The headers of a call for this user, whose id must be plain ASCII."""
        return {**self.auth, "x-wattfare-user": user}

    def openai(self, user: str = "u1", **options: Any) -> Any:
        """The official openai client, billed to this user."""
        import openai

        return openai.OpenAI(
            api_key=self.keys.secret_key,
            base_url=self.service.api,
            default_headers={"x-wattfare-user": user},
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False, verify=ssl_context()),
            **options,
        )

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def __enter__(self) -> App:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def eventually(probe: Callable[[], T]) -> T:
    """Polls a function until its result is true, and returns the result. For conditions without an
    event to wait for."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.01
    while not (result := probe()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(pause)  # the function may open a database, and the machine is shared
        pause = min(1.5 * pause, 0.1)
    return result


def bearer(credential: str) -> dict[str, str]:
    """The header with this credential."""
    return {"authorization": f"Bearer {credential}"}


def chat_body(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    """An inference body for the built-in model."""
    return {
        "model": "wattfare/echo",
        "messages": [{"role": "user", "content": text}],
        **fields,
    }


def run_cli(
    *arguments: str, env: dict[str, str] | None = None, forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `wattfare …` to its end. ``forked`` is as in :func:`run_service`."""
    process = start_command(list(arguments), env, forked=forked)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as stdout, process.stderr as stderr, ThreadPoolExecutor(1) as other:
        errors = other.submit(stderr.read)  # at the same time, so that no full pipe blocks it
        out = stdout.read()
        return subprocess.CompletedProcess(arguments, process.wait(PATIENCE), out, errors.result())


def start_command(
    arguments: list[str], env: dict[str, str] | None, *, forked: bool
) -> subprocess.Popen[str] | ForkedCommand:
    """Starts `wattfare …` with pipes for its output."""
    if forked and "COVERAGE_PROCESS_CONFIG" not in os.environ:  # which sees no forked process
        return ForkedCommand(arguments, environment(env))
    return subprocess.Popen(
        [sys.executable, "-m", "wattfare_mw.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        preexec_fn=obey_ctrl_c,
    )


@contextmanager
def run_service(
    tmp_path: Path,
    *options: str,
    env: dict[str, str] | None = None,
    stop_grace: float = 0,
    database: str | None = None,
    forked: bool = True,
) -> Iterator[Service]:
    """Runs `wattfare serve --port 0` over a database in ``tmp_path``, from its ready line to the
    end of the block.

    Args:
        options: more arguments of ``serve``.
        env: more variables.
        stop_grace: seconds that streams may continue after SIGTERM.
        database: a database other than a file in ``tmp_path``.
        forked: from a process that has imported everything, which takes a tenth of the time. A
            test of how the command starts wants False.
    """
    if database is None:
        file = tmp_path / "wattfare.db"
        database = f"sqlite:///{file}" if file.exists() else sqlite_database(tmp_path, file.name)
    arguments = [
        "serve",
        "--port",
        "0",
        "--database",
        database,
        "--stop-grace",
        str(stop_grace),
        *options,
    ]
    process = start_command(arguments, env, forked=forked)
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    # Read all the time, so that a full pipe never blocks it.
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        if "listening on " not in line:
            process.wait(PATIENCE)
            reader.join(PATIENCE)
            raise AssertionError(f"wattfare serve did not start: {''.join(log)}")
        yield Service(line.split("listening on ")[1].strip(), database, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            reader.join(PATIENCE)
            process.stdout.close()
            process.stderr.close()


def obey_ctrl_c() -> None:
    """For ``preexec_fn`` of a process that a test stops by SIGINT. A shell lets the jobs that it
    starts with ``&`` ignore this signal, and a new process inherits this from the tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This process's variables without those that would change the service."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WATTFARE_")}
    kept["PYTHONUNBUFFERED"] = "1"
    # The package of this tree, whichever is installed.
    root = str(Path(__file__).parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    return {**kept, **(more or {})}
