"""Loads a server: with wrk to measure it, or with one request to check its answer."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.apps.users import COOKIE
from benchmarks.peers import clients
from benchmarks.upstream import answers

from .processes import BenchError, Server

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Load:
    """A request to repeat.

    Attributes:
        expect: the body that each answer must have; None for any.
        users: how many users take turns (in ``X-Wattfare-User``); 0 sends no such header.
    """

    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    expect: bytes | None = None
    method: str = "POST"
    connections: int = 32
    users: int = 0


@dataclass(frozen=True)
class Sample:
    """The result of one load. ``cpu``: the share of one core that each server used, by its name."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu: dict[str, float] = field(default_factory=dict)


def chat(stream: bool = False, model: str = answers.MODEL, text: str = "Say hello.") -> bytes:
    """An inference body."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": text},
        ],
        "max_tokens": 128,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


_JSON = {"content-type": "application/json"}


def completions(path: str, **more: Any) -> Load:
    """Inference in JSON, with 32 connections."""
    return Load(path, chat(), _JSON, answers.COMPLETION_BODY, **more)


def streams(path: str, **more: Any) -> Load:
    """Inference in streams of 100 chunks, with 8 connections."""
    return Load(path, chat(stream=True), _JSON, answers.STREAM_BODY, **{"connections": 8, **more})


#: The inference paths of a bare pass-through and of our middleware.
BARE, OURS = "/chat/completions", "/api/wattfare/chat/completions"
DIRECT = "/api/v1/chat/completions"
SIGNED_IN = {**_JSON, "cookie": COOKIE}
AUTHORIZED = {**_JSON, "authorization": f"Bearer {clients.SECRET_KEY}"}


def check(server: Server, load: Load) -> None:
    """Send one request, and check its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        headers = {**load.headers, **({"x-wattfare-user": "user_1"} if load.users else {})}
        connection.request(load.method, load.path, load.body, headers)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{server.name}: {load.path}: {error!r}") from None
    finally:
        connection.close()
    if answer.status != 200 or load.expect not in (None, body):
        raise BenchError(f"{server.name}: {load.path}: {answer.status} {body[:300]!r}")


def wrk(server: Server, load: Load, seconds: float, watched: tuple[Server, ...] = ()) -> Sample:
    """Load a server for this many seconds. Raises :class:`BenchError` if an answer is wrong.

    Args:
        watched: other servers whose CPU time is measured, too.
    """
    servers = (server, *watched)
    with tempfile.NamedTemporaryFile() as body:
        body.write(load.body)
        body.flush()
        env = {
            **os.environ,
            "BENCH_METHOD": load.method,
            "BENCH_HEADERS": "\n".join(f"{n}: {v}" for n, v in load.headers.items()),
            "BENCH_BODY": body.name,
            "BENCH_USERS": str(load.users),
        }
        options = ["-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s"]
        before = [one.cpu_seconds() for one in servers]
        done = subprocess.run(
            ["wrk", *options, "--timeout", "30s", "-s", str(SCRIPT), server.url + load.path],
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
        )
        used = [one.cpu_seconds() - b for one, b in zip(servers, before, strict=True)]
    lines = [line for line in done.stdout.splitlines() if line.startswith("JSON ")]
    if not lines:
        raise BenchError(f"wrk failed: {done.stdout} {done.stderr}")
    output = json.loads(lines[-1].removeprefix("JSON "))
    if output["errors"] or not output["requests"]:
        raise BenchError(f"{server.name}: {load.path}, {load.connections} connections: {output}")
    if load.expect and output["bytes"] < output["requests"] * len(load.expect):
        raise BenchError(f"{server.name}: {load.path}: answers are too short: {output}")
    return Sample(
        output["requests"] / output["seconds"],
        output["p50_ms"],
        output["p99_ms"],
        {one.name: u / output["seconds"] for one, u in zip(servers, used, strict=True)},
    )
