"""Throughput and latency against connections, as SVG for the docs."""

from __future__ import annotations

import statistics
from typing import Any

from .load import Sample
from .processes import ROOT

FOLDER = ROOT / "docs" / "img"

Curves = dict[str, dict[int, list[Sample]]]
"""Samples by subject and by connections."""


def draw(name: str, title: str, unit: str, curves: Curves) -> None:
    """Write ``docs/img/NAME-throughput.svg`` and ``NAME-latency.svg``."""
    import matplotlib as mpl

    mpl.use("svg")
    # Text as text, and nothing in the file that changes with the day.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9})
    FOLDER.mkdir(exist_ok=True)
    _draw(f"{name}-throughput", title, unit, curves, [("rate", "-", "")])
    latencies = [("p50_ms", "-", " median"), ("p99_ms", ":", " p99")]
    _draw(f"{name}-latency", title, "ms", curves, latencies)


def _draw(
    name: str, title: str, unit: str, curves: Curves, measures: list[tuple[str, str, str]]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for number, (subject, by_connections) in enumerate(curves.items()):
        connections = sorted(by_connections)
        for measure, style, suffix in measures:
            values = [
                statistics.median(getattr(s, measure) for s in by_connections[c])
                for c in connections
            ]
            axes.plot(
                connections, values, style, marker=".", color=f"C{number}", label=subject + suffix
            )
    axes.set_xscale("log", base=2)
    if measures[0][0] == "p50_ms":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(connections, [str(c) for c in connections])
    axes.set_title(title)
    axes.set_xlabel("connections")
    axes.set_ylabel(unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
