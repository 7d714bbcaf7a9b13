"""The results of a run: a file for each library, from which the matrix and the page are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libraries.table import BY_NAME, CASES, LIBRARIES

FOLDER = Path(__file__).parents[2] / ".nox" / "results"
YES, NO, LACKS = "yes", "no", "—"


@dataclass(frozen=True)
class Result:
    """One row of the matrix.

    Attributes:
        versions: the versions of the library's packages.
        cells: the cells, by case.
    """

    versions: Mapping[str, str]
    cells: Mapping[str, str]


def note(report: Any) -> None:
    """Keeps the outcome of a test of the matrix, if this report has one."""
    properties = dict(report.user_properties)
    if "library" not in properties or not (report.when == "call" or report.outcome == "skipped"):
        return
    library = BY_NAME[properties["library"]]
    failed = report.outcome == "failed" or hasattr(report, "wasxfail")
    cell = NO if failed else LACKS if report.outcome == "skipped" else properties.get("cell", YES)
    if hasattr(report, "wasxfail") and report.outcome == "passed":
        cell = properties.get("cell", YES)
    file = FOLDER / f"{library.name}.json"
    kept = json.loads(file.read_text()) if file.exists() else {"cells": {}}
    kept["versions"] = library.versions()
    kept["cells"][properties["case"]] = cell
    FOLDER.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept, indent=2))


def read() -> dict[str, Result]:
    """The results of the last run, by library."""
    found: dict[str, Result] = {}
    for library in LIBRARIES:
        file = FOLDER / f"{library.name}.json"
        if file.exists():
            kept = json.loads(file.read_text())
            found[library.name] = Result(kept["versions"], kept["cells"])
    return found


def missing(results: Mapping[str, Result]) -> list[str]:
    """The cells that a run has not filled."""
    return [
        f"{library.name}: {case}"
        for library in LIBRARIES
        for case in CASES
        if library.name not in results or case not in results[library.name].cells
    ]
