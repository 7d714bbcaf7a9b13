"""Instructions of the app's other paths and of the gate, compared with ``counts.json``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..counted import WHAT
from ..harness import counts
from ..harness.bench import Bench

#: More growth than this prints a warning.
_GROWTH = 1.03


def row(bench: Bench) -> None:
    """Count the instructions, and warn if they have grown."""
    if bench.quick:  # callgrind would take minutes
        for make in WHAT.values():
            for call in make():
                call()
        return
    kept = counts.kept()
    with ThreadPoolExecutor(2) as pool:  # nothing is timed, so two may run at once
        counted = dict(zip(WHAT, pool.map(lambda w: counts.count(w, _times(w)), WHAT), strict=True))
    for what, number in counted.items():
        before = kept.get(what)
        if before is None:
            detail = f"{number:,.0f}; counts.json is for another build of Python"
            bench.judge(what, "instructions", "nothing", number, unit="instructions", detail=detail)
            continue
        detail = f"{number:,.0f} against {before:,.0f}"
        value = number / before
        bench.judge(what, "instructions", "counts.json", value, at_most=_GROWTH, detail=detail)
        if value > _GROWTH:
            print(f"  !! {what}: {value - 1:.1%} MORE INSTRUCTIONS than counts.json has !!")
    bench.raw["instructions"] = counted
    if bench.keep_counts or not counts.KEPT.exists():
        counts.keep(counted)


def _times(what: str) -> int:
    if what.startswith("the app's other paths"):
        return 5000
    return 20 if "stream" in what else 300
