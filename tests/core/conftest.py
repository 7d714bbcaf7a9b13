"""A scripted service, and each kind of HTTP client for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from support.clients import ONE_OF_EACH, Drive, Driver, Kind, driving
from support.wire import Wire, run_wire

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the environment variables of the machine that could change a result."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("WATTFARE_SECRET_KEY", "WATTFARE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A service that answers as the test scripts it."""
    with run_wire() as running:
        yield running


@pytest.fixture(params=ONE_OF_EACH, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each library, sync and async."""
    return request.param


@pytest.fixture
def drive(kind: Kind, wire: Wire) -> Iterator[Drive]:
    """Returns a function that makes a driver of each kind, for the wire or another ``url``."""
    with ExitStack() as stack:

        def make(url: str | None = None, http: Any = None, **options: Any) -> Driver:
            return stack.enter_context(driving(kind, url or wire.url, http, **options))

        yield make


@pytest.fixture
def driver(drive: Drive) -> Driver:
    """A driver of each kind."""
    return drive()


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces the waits between retries. Returns the seconds that each would take."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("wattfare_mw.client.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr("wattfare_mw.client.asyncio", SimpleNamespace(sleep=sleep))
    return waited
