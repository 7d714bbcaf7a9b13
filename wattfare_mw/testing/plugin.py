"""The pytest plugin as a module, for ``pytest_plugins`` and ``pytest -p``.

If the package is installed, pytest finds the plugin by itself, and this module is not needed.
"""

from __future__ import annotations

import pytest

from . import fixtures

#: The plugin's name, as in ``pytest -p no:wattfare``.
NAME = "wattfare"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin, unless it is loaded already."""
    if not pluginmanager.has_plugin(NAME):
        pluginmanager.register(fixtures, NAME)
