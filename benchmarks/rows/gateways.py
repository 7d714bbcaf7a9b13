"""The service next to gateways that others have made, without a budget or an account on theirs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ..harness import gateways, load
from ..harness.bench import Bench, Subject, rates, ratio, versus
from ..harness.processes import upstream
from ..harness.service import data_folder, serving, sqlite

_OURS = "service, SQLite"


def row(kind: str, at_least: float | None) -> Callable[[Bench], None]:
    """``json`` or ``streams``; ``at_least`` is against LiteLLM."""

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
            # Of 1.15.2, run by Node, each stream is a 500: it writes into headers that are closed.
            if kind == "json":
                portkey = enter(gateways.portkey(up.url))
                asked = gateways.portkey_load(make("/"), up.url)
                subjects.append(Subject("Portkey", portkey, asked, (up,)))
                others.append("Portkey")
            samples = bench.load(f"{kind}, gateways", subjects)
        unit = "streams/s" if kind == "streams" else "requests/s"
        for other in others:
            reach = at_least if other == "LiteLLM" else None
            value = ratio(rates(samples[_OURS]), rates(samples[other]))
            detail = versus(samples, _OURS, other, unit)
            path, against = f"service, {kind}, SQLite", f"{other}, no budget"
            bench.judge(path, "throughput", against, value, at_least=reach, detail=detail)

    return run
