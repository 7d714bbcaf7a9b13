"""What every test starts from."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _quiet_root_logger() -> None:
    """A framework that sets logging up for its app sets it up for all tests behind it, too."""
    logging.getLogger().setLevel(logging.WARNING)
