"""Each extra has a script that uses it. `make test-long` installs the wheel with only that extra
into an empty environment, and runs the script there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SCRIPTS = {path.stem for path in (Path(__file__).parent / "extras").glob("with_*.py")}


def test_each_extra_has_a_script() -> None:
    scripts = {f"with_{extra.replace('-', '_')}" for extra in EXTRAS}
    assert scripts | {"with_nothing"} == SCRIPTS


def test_extra_all_contains_all_others() -> None:
    (names,) = re.findall(r"\[(.*)\]", " ".join(EXTRAS["all"]))
    assert {*names.split(",")} == EXTRAS.keys() - {"all"}
