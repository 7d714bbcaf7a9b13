"""Draws throughput and latency by the number of connections, as SVG files for the docs."""

from __future__ import annotations

import statistics
from typing import Any

from .load import Sample
from .processes import ROOT

FOLDER = ROOT / "docs" / "img"

Curves = dict[str, dict[int, list[Sample]]]
"""The samples, by subject and number of connections."""

_MEASURES = {"throughput": "rate", "median": "p50_ms", "p99": "p99_ms"}


def draw(name: str, title: str, unit: str, curves: Curves) -> None:
    """Write ``docs/img/NAME-throughput.svg``, ``-median.svg`` and ``-p99.svg``."""
    import matplotlib as mpl

    mpl.use("svg")
    # Keep text as text, and leave out the date.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9})
    FOLDER.mkdir(exist_ok=True)
    for measure, field in _MEASURES.items():
        _draw(f"{name}-{measure}", title, measure, unit, field, curves)


def _draw(name: str, title: str, measure: str, unit: str, field: str, curves: Curves) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    colours: dict[str, str] = {}
    for subject, by_connections in curves.items():
        connections = sorted(by_connections)
        values = [
            statistics.median(getattr(s, field) for s in by_connections[c]) for c in connections
        ]
        # The two curves of a client have the same colour. The bare pass-through's curve is dashed.
        client = subject.rpartition(" ")[2]
        colour = colours.setdefault(client, f"C{len(colours)}")
        style = "--" if subject.startswith("bare") else "-"
        axes.plot(connections, values, style, marker=".", color=colour, label=subject)
        axes.set_xscale("log", base=2)
        axes.set_xticks(connections, [str(c) for c in connections])
    if measure == "throughput":
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.set_title(f"{title}: {measure}")
    axes.set_xlabel("connections")
    axes.set_ylabel(unit if measure == "throughput" else "ms")
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
