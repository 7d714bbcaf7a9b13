"""Private: modules that re-export names of other modules, and import each module when one of its
names is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_from(
    module: dict[str, Any], homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a module that re-exports these names.

    Args:
        module: the ``globals()`` of that module.
        homes: the names, under the module of this package that defines them.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    package = __name__.rpartition(".")[0]

    def get(name: str) -> Any:
        home = home_of.get(name)
        if home is None:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home}"), name)
        module[name] = value  # the next time it is simply there
        return value

    def names() -> list[str]:
        return sorted({*module, *home_of})

    return get, names
