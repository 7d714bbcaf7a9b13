"""An app with users who can pay, and a service that follows a test's script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.refusals import KEY
from support.service import App, Service
from support.upstream import Upstream, run_upstream

from wattfare_mw import Wattfare

#: Environment variables that these libraries read.
VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "http_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    """An app whose users ann and bob have a dollar each. Its user max has spent his budget."""
    with service.app() as made:
        for user, usd in (("ann", 1), ("bob", 1), ("max", 0)):
            made.connect(user, monthlyUsd=usd)
        yield made


@pytest.fixture
def wf(app: App) -> Iterator[Wattfare]:
    """The app's client."""
    with Wattfare(app.keys.secret_key, base_url=app.service.url) as made:
        yield made


@pytest.fixture
def fake() -> Iterator[Upstream]:
    """A service that runs its ``script``."""
    with run_upstream() as running:
        yield running


@pytest.fixture
def client(fake: Upstream) -> Iterator[Callable[..., Any]]:
    """Makes clients of it."""
    with ExitStack() as stack:

        def make(kind: Any = Wattfare, **options: Any) -> Any:
            made = kind(KEY, base_url=fake.url, **options)
            if kind is Wattfare:
                stack.enter_context(made)
            return made

        yield make


@pytest.fixture
def users(client: Callable[..., Any]) -> Wattfare:
    """A client of it."""
    return client()
