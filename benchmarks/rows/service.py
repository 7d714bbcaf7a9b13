"""The service's inference calls, with durable commits in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from ..harness import load, postgres
from ..harness.bench import Bench, Subject, rates, ratio, versus
from ..harness.load import BARE, check, wrk
from ..harness.processes import asgi, upstream
from ..harness.service import USERS, data_folder, process, serving, sqlite

_MANY, _ONE = f"service, {USERS} users", "service, one user"
#: Two processes, the database, the upstream and wrk need this many cores.
_FREE_CORES = 6


def sqlite_row(kind: str, at_least: float) -> Callable[[Bench], None]:
    """The row for SQLite and this ``kind``: ``json`` or ``streams``."""

    def run(bench: Bench) -> None:
        users = 2 if bench.quick else USERS
        with ExitStack() as stack:
            enter = stack.enter_context
            up = enter(upstream())
            bare = enter(asgi("bare", "peers.asgi:over_aiohttp", up.url))
            database = sqlite(enter(data_folder()))
            service = enter(serving(_MANY, database, up.url, users=users))
            ours = service.streams if kind == "streams" else service.completions
            theirs = load.streams if kind == "streams" else load.completions
            subjects = [
                Subject("bare", bare, theirs(BARE), (up,)),
                Subject(_MANY, service.server, ours(users), (up,)),
                Subject(_ONE, service.server, ours(1)),
            ]
            samples = bench.load(f"the service, {kind}, SQLite", subjects)
        unit = "streams/s" if kind == "streams" else "requests/s"
        for name, goal in ((_MANY, at_least), (_ONE, None)):
            value = ratio(rates(samples[name]), rates(samples["bare"]))
            detail = versus(samples, name, "bare", unit)
            path, against = f"{name}, {kind}, SQLite", "bare aiohttp pass-through"
            bench.judge(path, "throughput", against, value, at_least=goal, detail=detail)

    return run


def postgresql(bench: Bench) -> None:
    """PostgreSQL on the same machine, compared with SQLite; and two processes, compared with
    one."""
    users = 2 if bench.quick else USERS
    with ExitStack() as stack:
        enter = stack.enter_context
        up = enter(upstream())
        cluster = enter(postgres.cluster())
        lite = enter(serving("SQLite", sqlite(enter(data_folder())), up.url, users=users))
        url = cluster.database()
        one = enter(serving("PostgreSQL", url, up.url, users=users))
        subjects = [
            Subject("SQLite", lite.server, lite.completions(users), (up,)),
            Subject("PostgreSQL", one.server, one.completions(users), (up,)),
        ]
        samples = bench.load("the service, json, PostgreSQL", subjects)
        value = ratio(rates(samples["PostgreSQL"]), rates(samples["SQLite"]))
        detail = versus(samples, "PostgreSQL", "SQLite", "requests/s")
        path, against = "service, json, PostgreSQL", "the same on SQLite"
        bench.judge(path, "throughput", against, value, at_least=0.4, detail=detail)
        if bench.quick:
            return
        other = enter(process("second process", url, up.url))
        half = one.completions(users, connections=16)
        check(other, half)
        wrk(other, half, 2)

        def both() -> float:
            with ThreadPoolExecutor(2) as pool:
                servers = (one.server, other)
                taken = list(pool.map(lambda s: wrk(s, half, bench.seconds).rate, servers))
            return sum(taken)

        numbers = bench.take(
            "processes on one PostgreSQL",
            "requests/s",
            {
                "one": lambda: wrk(one.server, one.completions(users), bench.seconds).rate,
                "two": both,
            },
        )
    cores = os.cpu_count() or 1
    free = cores >= _FREE_CORES
    detail = f"{statistics.median(numbers['two']):,.0f} requests/s"
    if not free:
        detail += f"; not judged, because {cores} cores are too few"
    value = ratio(numbers["two"], numbers["one"])
    goal = 1.5 if free else None
    path, against = "service, json, PostgreSQL, two processes", "one process"
    bench.judge(path, "throughput", against, value, at_least=goal, detail=detail)
