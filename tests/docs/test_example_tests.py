"""The examples' own tests pass. The docs show them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wattfare_mw.testing import WattfareService, shared_service

from .conftest import EXAMPLES, load

MODULES = sorted(path.stem for path in (EXAMPLES / "tests").glob("test_*.py"))


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Any:
    """Sets what ``wattfare_environment = true`` in pytest.ini sets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shared_service().environ.items():
            patch.setenv(name, value)
        patch.syspath_prepend(EXAMPLES)
        for path in EXAMPLES.glob("*.py"):  # another test may have imported it
            patch.delitem(sys.modules, path.stem, raising=False)
        yield


@pytest.mark.parametrize("name", MODULES)
def test_tests_of_an_example_pass(name: str) -> None:
    module = load(f"tests/{name}")
    tests: list[Callable[[WattfareService], None]] = [
        function for name, function in inspect.getmembers(module) if name.startswith("test_")
    ]
    assert tests
    for test in tests:
        with WattfareService() as wattfare:
            test(wattfare)
