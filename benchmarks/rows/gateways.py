"""The service compared with other gateways, which run without budgets and accounts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ..harness import gateways, load
from ..harness.bench import Bench, Subject, rates, ratio, versus
from ..harness.processes import upstream
from ..harness.service import data_folder, serving, sqlite

_OURS = "service, SQLite"


def row(kind: str, at_least: float | None) -> Callable[[Bench], None]:
    """The row for this ``kind``: ``json`` or ``streams``. ``at_least``: the goal for LiteLLM."""

    def run(bench: Bench) -> None:
        make = load.streams if kind == "streams" else load.completions
        others = ["LiteLLM"]
        with ExitStack() as stack:
            enter = stack.enter_context
            up = enter(upstream())
            service = enter(serving(_OURS, sqlite(enter(data_folder())), up.url))
            lite = enter(gateways.litellm(up.url))
            ours = service.streams() if kind == "streams" else service.completions()
            subjects = [
                Subject(_OURS, service.server, ours, (up,)),
                Subject("LiteLLM", lite, gateways.litellm_load(make("/")), (up,)),
            ]
            # Version 1.15.2 answers each stream with a 500 on Node: it sets headers after it has
            # sent them.
            if kind == "json":
                portkey = enter(gateways.portkey(up.url))
                asked = gateways.portkey_load(make("/"), up.url)
                subjects.append(Subject("Portkey", portkey, asked, (up,)))
                others.append("Portkey")
            samples = bench.load(f"{kind}, gateways", subjects)
        unit = "streams/s" if kind == "streams" else "requests/s"
        for other in others:
            goal = at_least if other == "LiteLLM" else None
            value = ratio(rates(samples[_OURS]), rates(samples[other]))
            detail = versus(samples, _OURS, other, unit)
            path, against = f"service, {kind}, SQLite", f"{other} without budgets"
            bench.judge(path, "throughput", against, value, at_least=goal, detail=detail)

    return run
