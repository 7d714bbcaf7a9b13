"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest


@pytest.fixture(autouse=True)
def _quiet_root_logger() -> None:
    """A framework that sets logging up for its app sets it up for all tests behind it, too."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a machine lacks is told in one line, and not in one for each test that needs it."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        _, _, reason = report.longrepr
        if "To have the rest:" in reason:
            report.longrepr = ("tests", None, reason)
    return report
