"""An app for each test in the shared service, and databases for several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.service import App, Service


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    """A test app of its own."""
    app = service.app()
    yield app
    app.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> str:
    """One that several processes can share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return request.getfixturevalue("cluster").database()
