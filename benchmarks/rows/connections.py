"""Charts for the docs: throughput and latency with 1 to 128 connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from ..harness import load, plots
from ..harness.bench import Bench, Subject
from ..harness.load import BARE, OURS
from ..harness.processes import asgi, upstream
from ..harness.service import data_folder, serving, sqlite
from .inference import signed_in

_CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
# Fewer and shorter rounds: there are many points, and none has a goal.
_ROUNDS, _SECONDS = 3, 2


def row(kind: str) -> Callable[[Bench], None]:
    """The row for this ``kind``: ``json`` or ``streams``."""

    def run(bench: Bench) -> None:
        bench.rounds = min(bench.rounds, _ROUNDS)
        bench.seconds = min(bench.seconds, _SECONDS)
        make = load.streams if kind == "streams" else load.completions
        # Over httpx, 128 streams at once do not end within a round.
        most = 64 if kind == "streams" else 128
        connections = (1,) if bench.quick else [n for n in _CONNECTIONS if n <= most]
        with ExitStack() as stack:
            enter = stack.enter_context
            up = enter(upstream())
            subjects: list[Subject] = []
            for client in ("aiohttp", "httpx2", "httpx"):
                bare = enter(asgi(f"bare {client}", f"peers.asgi:over_{client}", up.url))
                ours = enter(asgi(f"ours on {client}", f"apps.asgi:over_{client}", up.url))
                subjects.append(Subject(bare.name, bare, make(BARE)))
                subjects.append(Subject(ours.name, ours, signed_in(make(OURS))))
            service = enter(serving("service, SQLite", sqlite(enter(data_folder())), up.url))
            metered = service.streams() if kind == "streams" else service.completions()
            subjects.append(Subject(service.server.name, service.server, metered))
            curves: plots.Curves = {subject.name: {} for subject in subjects}
            for count in connections:
                samples = bench.load(
                    f"{kind}, connections: {count}",
                    [replace(s, load=replace(s.load, connections=count)) for s in subjects],
                )
                for name, taken in samples.items():
                    curves[name][count] = taken
        if not bench.quick:
            what = "streams of 100 chunks" if kind == "streams" else "answers in JSON"
            unit = "streams/s" if kind == "streams" else "requests/s"
            plots.draw(f"connections-{kind}", f"Inference, {what}", unit, curves)

    return run
