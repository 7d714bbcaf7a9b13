"""Private: lazy imports. A module can re-export the names of other modules, and import each of them
on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_from(
    module: dict[str, Any], homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Create the ``__getattr__`` and the ``__dir__`` of a module that re-exports names.

    Args:
        module: the ``globals()`` of that module.
        homes: the names to re-export, by the module of this package that defines them.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    package = __name__.rpartition(".")[0]

    def get(name: str) -> Any:
        home = home_of.get(name)
        if home is None:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home}"), name)
        module[name] = value  # the next access finds it directly
        return value

    def names() -> list[str]:
        return sorted({*module, *home_of})

    return get, names
