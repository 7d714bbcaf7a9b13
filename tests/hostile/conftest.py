"""Runs another user's stream beside each service while it is attacked.

A fixture that starts a service adds such a stream, the victim, to ``victims``. After each test, the
stream must not have had a long gap. After the last test, the stream must be complete and its ledger
correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from support.service import Service, run_service
from support.upstream import Upstream
from support.victim import Victim, victim

Watch = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def victims() -> list[Victim]:
    """The victims of this module."""
    return []


@pytest.fixture(scope="module")
def watch(victims: list[Victim]) -> Watch:
    """Returns a context manager that runs a victim beside a service. With an upstream, pass the
    model ``fake/model``."""

    @contextmanager
    def watch(service: Service, model: str = "wattfare/echo-slow") -> Iterator[None]:
        with service.app() as app, victim(app, model) as one:
            victims.append(one)
            try:
                yield
            finally:
                victims.remove(one)

    return watch


@pytest.fixture(autouse=True)
def _unhurt(victims: list[Victim]) -> Iterator[None]:
    for one in victims:
        one.forget()
    yield
    for one in victims:
        one.check()


@pytest.fixture(scope="module")
def service(service: Service, watch: Watch) -> Iterator[Service]:
    """The service that all tests share, with a victim."""
    with watch(service):
        yield service


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory, watch: Watch) -> Iterator[Service]:
    """A service for this module only, with a victim. Other tests write unbalanced rows into the
    ledger of the shared service."""
    with run_service(tmp_path_factory.mktemp("own")) as running, watch(running):
        yield running


@pytest.fixture(scope="module")
def forwarding(forwarding: Service, watch: Watch) -> Iterator[Service]:
    """The service in front of the fake upstream, with a victim."""
    with watch(forwarding, "fake/model"):
        yield forwarding


@pytest.fixture(scope="module")
def attacked(
    tmp_path_factory: pytest.TempPathFactory, _upstream: Upstream, watch: Watch
) -> Iterator[Service]:
    """A service for this module in front of the fake upstream, with a victim. Only this module's
    attacks affect its memory and its log."""
    folder = tmp_path_factory.mktemp("attacked")
    with (
        run_service(folder, "--upstream", _upstream.url) as running,
        watch(running, "fake/model"),
    ):
        yield running
