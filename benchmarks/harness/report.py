"""Stores results in ``results.json``, which is not committed, and writes RESULTS.md from it. If
only some rows run, the results of the others stay."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .bench import Bench, Finding
from .machine import describe

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results.json"
PAGE = FOLDER / "RESULTS.md"
CHANGES = FOLDER / "CHANGES.md"

#: The largest share of the machine that other processes may use, and the fewest rounds, for a
#: reliable result.
_QUIET = 0.1
_ROUNDS = 5

_INTRODUCTION = """# Results of the benchmarks

`make bench` writes this page. [README.md](README.md) explains the method. Each row runs at least
five rounds, which alternate between the subjects. A ratio is the median of the rounds' ratios.
"""


def save(row: str, bench: Bench) -> None:
    """Store the results of a row."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = kept.setdefault("rows", {})
    rows[row] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": bench.rounds,
        "seconds": bench.seconds,
        "busy": round(bench.busy, 3),
        "machine": describe(),
        "findings": [asdict(finding) for finding in bench.findings],
        "tables": bench.tables,
        "raw": bench.raw,
    }
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def write(order: list[str]) -> None:
    """Write the page from the stored results, with its rows in this order."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: dict[str, Any] = kept.get("rows", {})
    missing = [name for name in order if name not in rows]
    if missing:
        # The page would lose the results of these rows.
        print(
            "RESULTS.md is not changed, because results.json has no results for"
            f" {', '.join(missing)}."
        )
        return
    parts = [
        _INTRODUCTION,
        _caution([rows[name] for name in order]),
        "## At a glance\n",
        _glance({name: rows[name] for name in order}),
    ]
    parts += ["## Effect of each change\n", CHANGES.read_text().strip() + "\n"]
    parts.append("## Row by row\n")
    for name in order:
        parts.append(_row(name, rows[name]))
    parts.append("## Machine and versions\n")
    newest = max((rows[name] for name in order), key=lambda row: row["when"])
    parts.append(_table(["", ""], [[n, v] for n, v in newest["machine"].items() if v]))
    PAGE.write_text("\n".join(parts))


def _caution(rows: list[dict[str, Any]]) -> str:
    loud = sum(row["busy"] > _QUIET for row in rows)
    few = sum(row["rounds"] < _ROUNDS for row in rows)
    if not loud and not few:
        return ""
    return (
        f"**Not reliable**: of {len(rows)} rows, {loud} were measured while other processes used"
        f" the machine, and {few} had fewer than {_ROUNDS} rounds.\n"
    )


def line(finding: Finding) -> str:
    """A finding as a line of output."""
    mark = {True: "reached", False: "NOT REACHED", None: ""}[finding.reached]
    return (
        f"  {finding.path}: {finding.measure} against {finding.against}: "
        f"{_number(finding.value, finding.unit)}  ({finding.goal or 'no goal'})  {mark}"
        f"  {finding.detail}"
    )


def _number(value: float, unit: str) -> str:
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def _glance(rows: dict[str, Any]) -> str:
    lines: list[list[str]] = []
    for name, row in rows.items():
        for fields in row["findings"]:
            finding = Finding(**fields)
            mark = {True: "yes", False: "**no**", None: ""}[finding.reached]
            number = _number(finding.value, finding.unit)
            measured = f"{number} ({finding.detail})" if finding.detail else number
            what = f"{finding.path}: {finding.measure}"
            lines.append([f"`{name}`", what, finding.against, finding.goal, measured, mark])
    return _table(["row", "measured", "compared with", "goal", "result", "reached"], lines)


def _row(name: str, row: dict[str, Any]) -> str:
    rounds = f"{row['when']}: {row['rounds']} rounds"
    load = f"A load lasts {row['seconds']:g} s."
    others = f"Before the run, other processes used {row['busy']:.0%} of the machine."
    parts = [f"### {name}\n", f"{rounds}. {load} {others}\n"]
    for table in row["tables"]:
        parts += [f"{table['title']}:\n", _table(table["columns"], table["rows"])]
    return "\n".join(parts)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
