"""The cost of larger bodies, a larger ledger and more users."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from wattfare_mw.service import create_keys

from ..harness import load
from ..harness.bench import Bench, Subject, rates, ratio, versus
from ..harness.load import BARE, OURS, SIGNED_IN, Load
from ..harness.processes import asgi, upstream
from ..harness.service import Service, data_folder, process, sqlite
from ..upstream import answers

_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_ROWS = (10, 1_000_000)
_USERS = (10, 100_000)
#: A cost may grow by this factor and still count as constant.
_FLAT = 1.15


def bodies(bench: Bench) -> None:
    """Bodies of 1 kB to 1 MB with one client, compared with the bare pass-through."""
    with (
        upstream() as up,
        asgi("bare", "peers.asgi:over_aiohttp", up.url) as bare,
        asgi("ours", "apps.asgi:over_aiohttp", up.url) as ours,
    ):
        subjects: list[Subject] = []
        for size in _SIZES:
            body = load.chat(text="word " * (size // 5))
            for name, server, path in (("bare", bare, BARE), ("ours", ours, OURS)):
                asked = Load(path, body, SIGNED_IN, answers.COMPLETION_BODY, connections=1)
                subjects.append(Subject(f"{name}, {size:,} bytes", server, asked))
        samples = bench.load("bodies, one client", subjects)
    least = 0.0
    for size in _SIZES:
        ours_ms, bare_ms = (
            [s.p50_ms for s in samples[f"{name}, {size:,} bytes"]] for name in ("ours", "bare")
        )
        value = ratio(ours_ms, bare_ms)
        least = least or value
        detail = f"{ours_ms[0]:.2f} against {bare_ms[0]:.2f} ms in the first round"
        path, against = f"inference, a body of {size:,} bytes", "bare aiohttp pass-through"
        goal = None if size == _SIZES[0] else round(least * _FLAT, 2)
        bench.judge(path, "median", against, value, at_most=goal, detail=detail)


def history(bench: Bench) -> None:
    """A ledger with ten rows and one with a million."""
    _service_on(bench, _ROWS, "rows in the ledger", _with_ledger)


def users(bench: Bench) -> None:
    """Ten users and a hundred thousand users."""
    _service_on(bench, _USERS, "users", _with_users)


def _service_on(
    bench: Bench, sizes: tuple[int, int], what: str, fill: Callable[[Path, str, int], int]
) -> None:
    few, many = sizes if not bench.quick else (10, 1000)
    with ExitStack() as stack:
        enter = stack.enter_context
        up = enter(upstream())
        subjects: list[Subject] = []
        for count in (few, many):
            folder = enter(data_folder())
            database = sqlite(folder)
            keys = create_keys(database, "bench", "test")
            users = fill(folder / "ledger.db", keys.app_id, count)
            name = f"{count:,} {what}"
            service = Service(enter(process(name, database, up.url)), keys)
            subjects.append(Subject(name, service.server, service.completions(users), (up,)))
        samples = bench.load(what, subjects)
    a, b = (f"{count:,} {what}" for count in (many, few))
    value = ratio(rates(samples[a]), rates(samples[b]))
    detail = versus(samples, a, b, "requests/s")
    goal = round(1 / _FLAT, 2)
    bench.judge(f"service, {a}", "throughput", b, value, at_least=goal, detail=detail)


def _with_ledger(path: Path, app_id: str, count: int) -> int:
    users = _with_users(path, app_id, 10)
    _fill_ledger(path, app_id, count)
    return users


def _with_users(path: Path, app_id: str, count: int) -> int:
    _fill_users(path, app_id, count)
    return count


def _fill_ledger(path: Path, app_id: str, count: int) -> None:
    now = int(time.time())
    rows = (
        (f"filled-{n}", now, now, app_id, f"user_{n % 10 + 1}", "2020-01", answers.MODEL, n)
        for n in range(count)
    )
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO ledger (reservation_id, reserved_at, settled_at, app_id, user_id, month,"
            " model, prompt_tokens, completion_tokens, reserved_nanos, billed_nanos, ended,"
            " request_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 1, 1, 'complete', 'filled')",
            rows,
        )


def _fill_users(path: Path, app_id: str, count: int) -> None:
    now = int(time.time())
    rows = ((app_id, f"user_{n + 1}", now) for n in range(count))
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT OR IGNORE INTO connections (app_id, user_id, cap_nanos, connected, changed_at)"
            " VALUES (?, ?, 1000000000000000, 1, ?)",
            rows,
        )
