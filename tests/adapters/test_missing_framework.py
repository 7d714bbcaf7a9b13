"""If its framework is missing, an adapter says what to install."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest


class _Without(importlib.abc.MetaPathFinder):
    """Hides this package from the import system."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


@pytest.mark.parametrize("framework", ["django", "fastapi", "flask", "litestar", "starlette"])
def test_import_error_says_what_to_install(monkeypatch: Any, framework: str) -> None:
    adapter = f"wattfare_{framework}"
    for name in list(sys.modules):
        if name.partition(".")[0] in (framework, adapter):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without(framework), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(adapter)
    assert f"pip install 'wattfare-mw[{framework}]'" in str(caught.value)
