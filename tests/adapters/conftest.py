"""Options for the scripted service or, for calls that cost money, the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.service import App, Service


@pytest.fixture
def at_fake(fake: FakeWattfare) -> dict[str, Any]:
    """Options for the scripted service."""
    return {"secret_key": SECRET_KEY, "base_url": fake.url}


@pytest.fixture
def account(service: Service) -> Iterator[App]:
    """A new app's account with the real service."""
    with service.app() as account:
        yield account


@pytest.fixture
def at_service(account: App) -> dict[str, Any]:
    """Options for the real service."""
    return {"secret_key": account.keys.secret_key, "base_url": account.service.url}


@pytest.fixture
def spent(account: App) -> Callable[[str], Decimal]:
    """Returns what a user has spent, in USD."""
    return lambda user: Decimal(str(account.status(user)["usage"]["monthlyUsd"]))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Django project of the tests. A process can have only one."""
    from support import django_project

    django_project.configure(
        str(tmp_path_factory.mktemp("django") / "db.sqlite3"),
        INSTALLED_APPS=[
            *django_project.INSTALLED_APPS,
            "rest_framework",
            "rest_framework.authtoken",
        ],
    )
    django_project.make_tables()
