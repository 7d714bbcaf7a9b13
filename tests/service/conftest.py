"""An app for each test in the shared service, and databases for several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.service import App, Service


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    """A test app for one test."""
    app = service.app()
    yield app
    app.close()
