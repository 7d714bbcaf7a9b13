"""A service for all the tests of a module, and an app for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.postgres import Cluster, run_cluster
from support.redis import run_redis
from support.service import App, Service, run_service
from support.upstream import Upstream, run_upstream


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the built-in model."""
    with run_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    """A test app of its own."""
    app = service.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A fake upstream."""
    with run_upstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def forwarding(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Service]:
    """A service in front of the fake upstream, for whose use nobody is asked a key."""
    with run_service(tmp_path_factory.mktemp("forwarding"), "--upstream", upstream.url) as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server."""
    with run_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server."""
    with run_redis() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> str:
    """One that several processes can share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return request.getfixturevalue("cluster").database()
