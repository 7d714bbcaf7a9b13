"""Other costs of a stream: the time to its first byte, and its memory."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..harness import load
from ..harness.bench import Bench, ratio
from ..harness.load import BARE, DIRECT, OURS, SIGNED_IN, Load, check
from ..harness.processes import Server, asgi, upstream
from ..harness.service import data_folder, serving, sqlite
from ..harness.streams import Reader, open_streams
from ..upstream import answers

_IDLE_STREAMS = 2000
_FIRST_BYTES = 300


def first_byte(bench: Bench) -> None:
    """The time to the first byte through the middleware and the service, compared with a direct
    call to the upstream. Two bare pass-throughs in a row and one write to the disk show the part of
    this time that no implementation can avoid."""
    count = 3 if bench.quick else _FIRST_BYTES
    with ExitStack() as stack:
        enter = stack.enter_context
        up = enter(upstream())
        folder = enter(data_folder())
        service = enter(serving("service", sqlite(folder), up.url, users=1))
        secret = {"BENCH_SECRET_KEY": service.keys.secret_key}
        app = enter(asgi("middleware", "apps.asgi:over_aiohttp", service.server.url, **secret))
        second = enter(asgi("second bare", "peers.asgi:over_aiohttp", up.url))
        first = enter(asgi("first bare", "peers.asgi:over_aiohttp", second.url))
        asked = load.chat(stream=True)
        readers = {
            "upstream directly": Reader(up, Load(DIRECT, asked, load.AUTHORIZED)),
            "through two bare pass-throughs": Reader(first, Load(BARE, asked, load.AUTHORIZED)),
            "through middleware and service": Reader(app, Load(OURS, asked, SIGNED_IN)),
        }
        for reader in readers.values():
            stack.callback(reader.close)
            reader.first_byte()
        taken = bench.take(
            "median time to the first byte",
            "ms",
            {
                **{name: partial(_median, reader, count) for name, reader in readers.items()},
                "one fdatasync after an append of 16 kB": lambda: _durable(folder, count),
            },
        )
    direct, bare, ours, disk = taken.values()
    path = "first byte of a stream, middleware and service"
    for against, base, at_most in (
        ("the upstream directly", direct, 1.5),
        ("two bare pass-throughs in a row", bare, None),
        (
            "two bare pass-throughs and one fdatasync",
            [a + b for a, b in zip(bare, disk, strict=True)],
            None,
        ),
    ):
        value = statistics.median(a - b for a, b in zip(ours, base, strict=True))
        detail = f"{statistics.median(ours):.2f} against {statistics.median(base):.2f} ms"
        bench.judge(path, "median added", against, value, at_most=at_most, unit="ms", detail=detail)


def _durable(folder: Path, count: int) -> float:
    """The median time to write as much as a reservation does to the disk, in milliseconds."""
    taken: list[float] = []
    with (folder / "appended").open("wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(16 * 1024))
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def _median(reader: Reader, count: int) -> float:
    return statistics.median(reader.first_byte() for _ in range(count))


def memory(bench: Bench) -> None:
    """The memory of each open stream, compared with the bare aiohttp pass-through."""
    count = 20 if bench.quick else _IDLE_STREAMS
    idle = load.chat(stream=True, model=answers.IDLE_MODEL)
    with upstream() as up:

        def kilobytes(app: str, path: str) -> float:
            with asgi(app, app, up.url) as server:  # a process keeps its memory
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
