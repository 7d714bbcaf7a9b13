"""Runs `wattfare …` in this process, for tests that do not test the process."""

from __future__ import annotations

import os
from unittest.mock import patch

import uvicorn
from click.testing import CliRunner, Result

from wattfare_mw.cli.commands import cli


def invoke_cli(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """Runs a command to its end.

    ``serve`` must exit by itself: if it starts to serve, an AssertionError is raised.

    Args:
        env: more variables. The command does not see this process's own `WATTFARE_…`.
    """
    ours: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith("WATTFARE_")
    }
    # pytest has handlers at the root, so logging.basicConfig() changes nothing.
    with patch.object(uvicorn.Server, "run", _do_not_serve):
        return CliRunner().invoke(cli, arguments, env={**ours, **(env or {})})


def _do_not_serve(*_: object) -> None:
    raise AssertionError("the service started")
