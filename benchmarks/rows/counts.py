"""The instructions of the pass-through and of the gate, against those kept in the repository."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..counted import WHAT
from ..harness import counts
from ..harness.bench import Bench

#: More than this is told.
_GROWTH = 1.03


def row(bench: Bench) -> None:
    """Counts them, and says where they have grown."""
    if bench.quick:  # under callgrind it would take minutes
        for make in WHAT.values():
            for call in make():
                call()
        return
    kept = counts.kept()
    with ThreadPoolExecutor(2) as pool:  # nothing is timed, so that two may run at once
        counted = dict(zip(WHAT, pool.map(lambda w: counts.count(w, _times(w)), WHAT), strict=True))
    for what, number in counted.items():
        before = kept.get(what)
        if before is None:
            detail = f"{number:,.0f}; none are kept for this build of Python"
            bench.judge(what, "instructions", "none", number, unit="instructions", detail=detail)
            continue
        detail = f"{number:,.0f} against {before:,.0f}"
        value = number / before
        bench.judge(what, "instructions", "those kept", value, at_most=_GROWTH, detail=detail)
        if value > _GROWTH:
            print(f"  !! {what}: {value - 1:.1%} MORE INSTRUCTIONS than counts.json has !!")
    bench.raw["instructions"] = counted
    if bench.keep_counts or not counts.KEPT.exists():
        counts.keep(counted)


def _times(what: str) -> int:
    if what.startswith("not ours"):
        return 5000
    return 20 if "stream" in what else 300
