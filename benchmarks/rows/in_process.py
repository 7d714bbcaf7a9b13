"""What is too small to be seen over a network: requests that are not ours, and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from whitenoise import WhiteNoise

from wattfare_mw import WattfareMiddleware

from ..apps import asgi, wsgi
from ..apps.users import signed_in_user
from ..harness.bench import Bench, ratio
from ..harness.processes import ROOT, BenchError, environment
from ..peers import clients

_CALLS = 20_000
#: The best of so many is a round's number: what disturbs only ever adds.
_TRIES = 5
_IMPORTS = 20


def _scope() -> dict[str, Any]:
    """As uvicorn makes it of a small GET."""
    headers = [
        (b"host", b"app.example.com"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (b"accept", b"text/html,application/xhtml+xml"),
        (b"accept-language", b"en-US,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"cookie", b"session=s3cr3t"),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/articles/42",
        "raw_path": b"/articles/42",
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


def _environ() -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/articles/42",
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "app.example.com",
        "HTTP_COOKIE": "session=s3cr3t",
        "REMOTE_ADDR": "127.0.0.1",
    }


async def _nothing(*_args: Any) -> None:
    pass


def _start_response(*_args: Any) -> None:
    pass


def asgi_call(app: Any) -> Callable[[], None]:
    """A function that has the app answer one request. The app waits for nothing, so that no
    event loop is needed, and none is measured."""
    scope = _scope()

    def call() -> None:
        try:
            app(scope, _nothing, _nothing).send(None)
        except StopIteration:
            return
        raise BenchError("an app that waits cannot be measured so")

    return call


def wsgi_call(app: Any) -> Callable[[], None]:
    """The same for WSGI."""
    environ = _environ()

    def call() -> None:
        for _ in app(environ, _start_response):
            pass

    return call


def ours_around(app: Any) -> Any:
    return WattfareMiddleware(app, resolve_user=signed_in_user, secret_key=clients.SECRET_KEY)


def not_ours_asgi(bench: Bench) -> None:
    """Against what CORSMiddleware adds to a request without an Origin."""
    apps = {
        "bare": asgi.hello,
        "ours": ours_around(asgi.hello),
        "CORSMiddleware": CORSMiddleware(asgi.hello, allow_origins=["https://example.com"]),
    }
    calls = {name: asgi_call(app) for name, app in apps.items()}
    _added(bench, "not ours, ASGI", calls, "CORSMiddleware", 0.15)


def not_ours_wsgi(bench: Bench) -> None:
    """Against what WhiteNoise adds to a request that is no file."""
    apps = {
        "bare": wsgi.hello,
        "ours": ours_around(wsgi.hello),
        "WhiteNoise": WhiteNoise(wsgi.hello, root=str(ROOT / "docs"), prefix="static/"),
    }
    calls = {name: wsgi_call(app) for name, app in apps.items()}
    _added(bench, "not ours, WSGI", calls, "WhiteNoise", 0.5)


def _added(
    bench: Bench, path: str, calls: dict[str, Callable[[], None]], other: str, at_most: float
) -> None:
    count = 100 if bench.quick else _CALLS
    timers = {name: _timer(call, count) for name, call in calls.items()}
    taken = bench.take(f"{path}, each request", "µs", timers)
    ours, theirs = (
        [a - b for a, b in zip(taken[name], taken["bare"], strict=True)] for name in ("ours", other)
    )
    value = statistics.median(ours) / statistics.median(theirs)
    detail = f"{statistics.median(ours):.3f} against {statistics.median(theirs):.3f} µs"
    bench.judge(path, "time added", f"what {other} adds", value, at_most=at_most, detail=detail)


def _timer(call: Callable[[], None], count: int) -> Callable[[], float]:
    def microseconds() -> float:
        best = float("inf")
        turns = range(count)
        for _ in range(_TRIES):
            began = time.perf_counter()
            for _ in turns:
                call()
            best = min(best, time.perf_counter() - began)
        return best / count * 1e6

    return microseconds


def imports(bench: Bench) -> None:
    """``import wattfare_mw`` against ``import httpx``, each in an interpreter of its own."""
    statements = {
        "import httpx": "import httpx",
        "import wattfare_mw": "import wattfare_mw",
        "what an ASGI app names": "from wattfare_mw import AsyncWattfare, WattfareMiddleware",
    }
    turns = {name: _import_timer(statement) for name, statement in statements.items()}
    rounds, bench.rounds = bench.rounds, max(bench.rounds, _IMPORTS)
    taken = bench.take("imports", "ms", turns)
    bench.rounds = rounds
    base = taken["import httpx"]
    for name in list(statements)[1:]:
        detail = f"{statistics.median(taken[name]):.1f} against {statistics.median(base):.1f} ms"
        value = ratio(taken[name], base)
        bench.judge(name, "time", "import httpx", value, at_most=1.25, detail=detail)


def _import_timer(statement: str) -> Callable[[], float]:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"

    def milliseconds() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
            timeout=60,
        )
        return float(done.stdout) * 1e3

    return milliseconds
