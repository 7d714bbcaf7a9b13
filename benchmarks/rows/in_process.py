"""Costs that are too small to measure over a network: requests to the app's other paths, and the
import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from whitenoise import WhiteNoise

from ..apps import asgi, wsgi
from ..harness.bench import Bench, ratio
from ..harness.direct import asgi_call, ours_around, wsgi_call
from ..harness.processes import ROOT, environment

_CALLS = 2_000
#: Each round takes the best of this many tries, because a disturbance can only add time.
_TRIES = 50
_IMPORTS = 20


def other_paths_asgi(bench: Bench) -> None:
    """The time that the middleware adds to a request to another path of the app. CORSMiddleware is
    the comparison, for a request without an ``Origin``. It also handles the answer, so an app
    without an answer and one with an answer are measured."""
    for path, app, at_most in (
        ("the app's other paths, ASGI", asgi.silent, 0.15),
        ("the app's other paths, ASGI, with an answer", asgi.hello, None),
    ):
        cors = CORSMiddleware(app, allow_origins=["https://example.com"])
        apps = {"bare": app, "ours": ours_around(app), "CORSMiddleware": cors}
        calls = {name: asgi_call(each) for name, each in apps.items()}
        _added(bench, path, calls, "CORSMiddleware", at_most)


def other_paths_wsgi(bench: Bench) -> None:
    """The same under WSGI. WhiteNoise is the comparison, for a request that is not for a file."""
    apps = {
        "bare": wsgi.hello,
        "ours": ours_around(wsgi.hello),
        "WhiteNoise": WhiteNoise(wsgi.hello, root=str(ROOT / "docs"), prefix="static/"),
    }
    calls = {name: wsgi_call(app) for name, app in apps.items()}
    _added(bench, "the app's other paths, WSGI", calls, "WhiteNoise", 0.5)


def _added(
    bench: Bench, path: str, calls: dict[str, Callable[[], None]], other: str, at_most: float | None
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
    """``import wattfare_mw`` compared with ``import httpx``, each in a new interpreter."""
    statements = {
        "import httpx": "import httpx",
        "import wattfare_mw": "import wattfare_mw",
        "the imports of an ASGI app": "from wattfare_mw import AsyncWattfare, WattfareMiddleware",
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
