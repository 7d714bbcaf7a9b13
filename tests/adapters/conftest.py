"""A strict fake where a test scripts the service, and the real one where money is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from support.fake_wattfare import SECRET_KEY, FakeWattfare, run_fake_wattfare
from support.service import App, Service, run_service


@pytest.fixture(scope="session")
def _fake() -> Iterator[FakeWattfare]:
    with run_fake_wattfare() as fake:
        yield fake


@pytest.fixture
def fake(_fake: FakeWattfare) -> Iterator[FakeWattfare]:
    """The scripted service; a request that is not right fails the test."""
    _fake.forget()
    yield _fake
    failures = list(_fake.failures)
    _fake.close_all()
    _fake.forget()
    assert not failures, failures


@pytest.fixture
def at_fake(fake: FakeWattfare) -> dict[str, Any]:
    """Options that lead to the scripted service."""
    return {"secret_key": SECRET_KEY, "base_url": fake.url}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def account(service: Service) -> Iterator[App]:
    """A new app's account with the real service."""
    with service.app() as account:
        yield account


@pytest.fixture
def at_service(account: App) -> dict[str, Any]:
    """Options that lead to the real service."""
    return {"secret_key": account.keys.secret_key, "base_url": account.service.url}


@pytest.fixture
def spent(account: App) -> Callable[[str], Decimal]:
    """What a user has spent, in USD."""
    return lambda user: Decimal(str(account.status(user)["usage"]["monthlyUsd"]))
