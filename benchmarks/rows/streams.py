"""What a stream costs beside its throughput: the wait for its first byte, and memory while it is
open."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from ..harness import load
from ..harness.bench import Bench, ratio
from ..harness.load import BARE, OURS, SIGNED_IN, STRAIGHT, Load, check
from ..harness.processes import Server, asgi, upstream
from ..harness.service import data_folder, serving, sqlite
from ..harness.streams import Reader, open_streams
from ..upstream import answers

_IDLE_STREAMS = 2000
_FIRST_BYTES = 300


def first_byte(bench: Bench) -> None:
    """Through middleware and service, one client, against straight to the upstream."""
    count = 3 if bench.quick else _FIRST_BYTES
    with ExitStack() as stack:
        enter = stack.enter_context
        up = enter(upstream())
        service = enter(serving("service", sqlite(enter(data_folder())), up.url, users=1))
        secret = {"BENCH_SECRET_KEY": service.keys.secret_key}
        app = enter(asgi("middleware", "apps.asgi:over_aiohttp", service.server.url, **secret))
        asked = load.chat(stream=True)
        through = Reader(app, Load(OURS, asked, SIGNED_IN))
        straight = Reader(up, Load(STRAIGHT, asked, load.AUTHORIZED))
        stack.callback(through.close)
        stack.callback(straight.close)
        for reader in (through, straight):
            reader.first_byte()
        taken = bench.take(
            "median time to the first byte",
            "ms",
            {
                "straight": lambda: _median(straight, count),
                "through middleware and service": lambda: _median(through, count),
            },
        )
    ways = [taken[name] for name in ("through middleware and service", "straight")]
    value = statistics.median(a - b for a, b in zip(*ways, strict=True))
    detail = f"{statistics.median(ways[0]):.2f} against {statistics.median(ways[1]):.2f} ms"
    path = "first byte of a stream, middleware and service"
    against = "straight to the upstream"
    bench.judge(path, "median added", against, value, at_most=1.5, unit="ms", detail=detail)


def _median(reader: Reader, count: int) -> float:
    return statistics.median(reader.first_byte() for _ in range(count))


def memory(bench: Bench) -> None:
    """What each of many open streams that wait takes, against the bare aiohttp pass-through."""
    count = 20 if bench.quick else _IDLE_STREAMS
    idle = load.chat(stream=True, model=answers.IDLE_MODEL)
    with upstream() as up:

        def kilobytes(app: str, path: str) -> float:
            with asgi(app, app, up.url) as server:  # a fresh one: memory is not given back
                check(server, Load(path, load.chat(stream=True), SIGNED_IN, answers.STREAM_BODY))
                return _taken_by(server, Load(path, idle, SIGNED_IN), count) / 1024

        taken = bench.take(
            f"memory for each of {count:,} open streams",
            "kB",
            {
                "bare": lambda: kilobytes("peers.asgi:over_aiohttp", BARE),
                "ours": lambda: kilobytes("apps.asgi:over_aiohttp", OURS),
            },
        )
    detail = " against ".join(f"{statistics.median(taken[n]):.1f}" for n in ("ours", "bare"))
    path, against = f"each of {count:,} open idle streams", "bare aiohttp pass-through"
    value = ratio(taken["ours"], taken["bare"])
    bench.judge(path, "memory", against, value, at_most=1.2, detail=f"{detail} kB")


def _taken_by(server: Server, what: Load, count: int) -> float:
    before = server.memory()
    with open_streams(server, what, count):
        return (server.memory() - before) / count
