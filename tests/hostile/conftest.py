"""Who must not notice the attacks: another user's stream runs beside each service.

A fixture that starts a service adds the stream to ``victims``. After each test, the stream has had
no long gap; after the last, nothing of it was cut and the ledger is right.
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
    """A block with a victim of this service beside it. With an upstream, the model is
    ``fake/model``."""

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
    """The service of all tests, with a victim."""
    with watch(service):
        yield service


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory, watch: Watch) -> Iterator[Service]:
    """A service of this module's own, with a victim. Other tests write rows into the ledger of the
    shared one, which does not add up then."""
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
    """A service of this module's own in front of the fake upstream, with a victim. Its memory and
    its log are of these attacks only."""
    folder = tmp_path_factory.mktemp("attacked")
    with (
        run_service(folder, "--upstream", _upstream.url) as running,
        watch(running, "fake/model"),
    ):
        yield running
