"""The service in front of a model, an app's middleware in front of it, and the matrix."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from support.service import App, Service, bearer, run_service
from support.upstream import Upstream, run_upstream

from libraries.drivers.base import Endpoint
from libraries.model import MODEL, MODELS, Model
from libraries.results import note
from libraries.servers import Servers
from libraries.table import Library, selected
from wattfare_mw import TokenUsage

# Without the variable that names libraries, only the page is tested.
collect_ignore = [] if selected() else ["test_matrix.py", "test_middleware.py", "test_examples.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Assigns each test of the matrix to its cell."""
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname == "test_library":
            library, case = item.callspec.params["library"], item.callspec.params["case"]
            item.user_properties += [("library", library.name), ("case", case)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps the results for the cells of the matrix."""
    note(report)


@dataclass
class World:
    """A user of an app, the service that the app calls, and the model behind the service.

    Attributes:
        bills: the arguments of each call of `on_usage`.
    """

    user: str
    app: App
    upstream: Upstream
    model: Model
    servers: Servers
    bills: list[tuple[str | None, str, TokenUsage | None, Decimal | None]]

    def endpoint(self, through: str) -> Endpoint:
        """The URL that a library calls for this user."""
        if through == "service":
            return Endpoint(
                self.app.service.api,
                self.app.keys.secret_key,
                {"X-Wattfare-User": self.user},
                MODEL,
            )
        url = f"{self.servers.url(through)}/api/wattfare"
        return Endpoint(url, "not-needed", {"X-User": self.user}, MODEL)

    def driver(self, library: Library, through: str | None = None) -> Any:
        """The library, for this user."""
        return library.load()(self.endpoint(through or library.through))

    def connect(self, monthly_usd: float = 1) -> None:
        """Gives the user a budget."""
        self.app.connect(self.user, monthlyUsd=monthly_usd)

    def revoke(self) -> None:
        """Revokes the budget."""
        token = self.app.token(self.user)
        assert self.app.http.delete("/connections", headers=bearer(token)).status_code == 204

    def spent(self) -> Decimal:
        """What the user was billed, in USD."""
        return Decimal(str(self.app.status(self.user)["usage"]["monthlyUsd"]))


@pytest.fixture(scope="session")
def model_upstream() -> Iterator[Upstream]:
    with run_upstream() as upstream:
        upstream.models = MODELS
        yield upstream


@pytest.fixture(scope="session")
def model_service(
    tmp_path_factory: pytest.TempPathFactory, model_upstream: Upstream
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("libraries")
    with run_service(home, "--upstream", model_upstream.url) as running:
        yield running


@dataclass
class Backend:
    """An app that a library is tested with, on several servers."""

    app: App
    servers: Servers
    bills: list[Any]


@pytest.fixture(scope="session")
def backend(model_service: Service) -> Iterator[Callable[[str], Backend]]:
    """The app of this name. Each library has its own, because an app may request only 120 session
    tokens a minute."""
    with ExitStack() as running:

        @cache
        def make(name: str) -> Backend:
            app = running.enter_context(App(model_service, model_service.create_app(name=name)))
            bills: list[Any] = []
            servers = Servers(app, lambda *bill: bills.append(bill))
            running.callback(servers.close)
            return Backend(app, servers, bills)

        yield make


_users = itertools.count(1)


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    backend: Callable[[str], Backend],
    model_upstream: Upstream,
) -> Iterator[World]:
    """A new user without a budget."""
    model = Model()
    model_upstream.reset()
    model_upstream.models = MODELS
    model_upstream.script = model
    own = backend(request.node.callspec.params["library"].name)
    own.bills.clear()
    yield World(f"user-{next(_users)}", own.app, model_upstream, model, own.servers, own.bills)
    assert not model_upstream.failures, model_upstream.failures
