"""GitHub's workflows call the Makefile's targets."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used: set[str] = set()
    for workflow in WORKFLOWS:
        text = workflow.read_text()
        used |= set(re.findall(r"run: make ([a-z-]+)", text))
        for listed in re.findall(r"target: \[(.*)\]", text):
            used |= {word.split()[0] for word in listed.split(", ")}
    assert used
    assert used <= targets


def test_workflows_run_everything_that_ci_runs() -> None:
    ours = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    text = "".join(workflow.read_text() for workflow in WORKFLOWS)
    assert [target for target in ours if target not in text] == []
