"""The basis of every test: the fixtures of several folders, and the choice of fast tests."""

from __future__ import annotations

import gc
import inspect
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from support.drivers import KINDS, Drive, Driver
from support.examples import load_profile
from support.fake_openrouter import FakeOpenRouter, run_openrouter
from support.fake_wattfare import SECRET_KEY, FakeWattfare, run_fake_wattfare
from support.postgres import Cluster, shared_cluster
from support.redis import shared_redis
from support.service import Service, run_service
from support.shared_run import SharedRun, new_run
from support.sqlite import sqlite_database
from support.upstream import Upstream, run_upstream

load_profile()

#: The tests of AI libraries, which the session `lowest` does not have.
OF_LIBRARIES = {
    "agents": "integrations/test_agents.py",
    "langchain_openai": "integrations/test_langchain.py",
    "pydantic_ai": "integrations/test_pydantic_ai.py",
}
collect_ignore = [path for name, path in OF_LIBRARIES.items() if find_spec(name) is None]

# If the package is installed, pytest has already loaded the plugin.
pytest_plugins = ["wattfare_mw.testing.plugin"]

#: Modules whose tests take many seconds each.
LONG = {"test_quick", "test_deaths", "test_demo", "test_ledger", "test_pauses", "test_processes"}
#: Modules with some such tests. They and the modules above run first.
FIRST = {*LONG, "test_examples", "test_large_bodies", "test_lost_calls", "test_media"}
FIRST |= {"test_pairs", "test_passwords", "test_stopped_streams", "test_unpriced"}
FIRST |= {"test_upstreams", "test_wrapped_app"}
#: Names that a test or fixture uses to start a process.
PROCESS_STARTERS = {"run_service", "run_cli", "run_cluster", "run_forked", "run_sdk", "run_server"}
PROCESS_STARTERS |= {"getfixturevalue", "loaded_by", "serving", "shared_cluster", "shared_redis"}
PROCESS_STARTERS |= {"WattfareService", "shared_service", "subprocess", "uvicorn_process"}
PROCESS_STARTERS |= {"victim", "victim_at"}
#: Modules that are not fast although their tests use none of these: they write to a database on the
#: disk, start processes in other ways, wait for timeouts of real connections, load an AI library,
#: make an app or a client for each of many rows, or read long texts.
SLOW = {
    *LONG,
    "test_connections",
    "test_examples",
    "test_floods",
    "test_real_prompts",
    "test_stores",
    "test_transport",
    "test_writer",
}
SLOW |= {"test_django", "test_django_recipes", "test_django_servers"}
SLOW |= {"test_dev", "test_doctor", "test_quickstart"}
SLOW |= {"test_current_user_gevent", "test_full_disk", "test_gevent", "test_silent_streams"}
SLOW |= {"test_agents", "test_langchain", "test_pydantic_ai", "test_current_user_libraries"}
SLOW |= {"test_cors", "test_environment", "test_interim_responses", "test_wattfare_js"}


# -- one run, in one process or several

_run = pytest.StashKey[SharedRun]()


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[_run] = SharedRun(Path(worker["shared_run"]))
        return
    stack = ExitStack()
    config.stash[_run] = stack.enter_context(new_run())
    config.add_cleanup(stack.close)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells each pytest-xdist worker what it shares with the others."""
    node.workerinput["shared_run"] = str(node.config.stash[_run].folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Uses two workers for each core: many tests wait for a process or a timeout. Fast tests do
    not, and each worker takes seconds to load them."""
    cores = os.cpu_count() or 1
    return cores if config.option.markexpr == "fast" else 2 * cores


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not load modules without fast tests, for ``-m fast``."""
    return (collection_path.stem in SLOW and config.option.markexpr == "fast") or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests and puts the long ones first, so that no worker ends with a long one."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if is_fast(item):
            item.add_marker("fast")


def is_fast(item: pytest.Item) -> bool:
    """True if the test starts no process, uses no database on the disk, and is quick."""
    slow = item.path.stem in SLOW or item.get_closest_marker("long") is not None
    if slow or not isinstance(item, pytest.Function):
        return False
    fixtures = chain.from_iterable(item._fixtureinfo.name2fixturedefs.values())
    return not any(map(starts_a_process, [item.function, *(each.func for each in fixtures)]))


@cache
def starts_a_process(function: Callable[..., Any]) -> bool:
    """True if the code of the test or of a fixture starts a process."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and not PROCESS_STARTERS.isdisjoint(names_in(code))


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function inside it
            yield from names_in(constant)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Keeps garbage collection away from the tests and modules, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shared_run(request: pytest.FixtureRequest) -> SharedRun:
    """The folder and the servers that all workers of the run share."""
    return request.config.stash[_run]


# -- servers: each starts when the first test needs it


@pytest.fixture(scope="session")
def cluster(shared_run: SharedRun) -> Cluster:
    """The PostgreSQL server of the run. A test asks it for its own database."""
    return shared_cluster(shared_run)


@pytest.fixture(scope="session")
def redis_url(shared_run: SharedRun) -> str:
    """The Redis server of the run."""
    return shared_redis(shared_run)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the built-in model. A test creates its own app in it."""
    with run_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    with run_upstream() as fake:
        yield fake


@pytest.fixture
def upstream(_upstream: Upstream) -> Iterator[Upstream]:
    """A fake upstream without the changes of other tests."""
    _upstream.reset()
    yield _upstream
    failures = list(_upstream.failures)
    _upstream.failures.clear()
    _upstream.reset()  # for requests that a module makes before its first test
    assert not failures, failures


@pytest.fixture(scope="session")
def forwarding(tmp_path_factory: pytest.TempPathFactory, _upstream: Upstream) -> Iterator[Service]:
    """A service in front of the fake upstream. It needs no upstream key."""
    with run_service(tmp_path_factory.mktemp("forwarding"), "--upstream", _upstream.url) as running:
        yield running


@pytest.fixture(scope="session")
def openrouter() -> Iterator[FakeOpenRouter]:
    """A fake OpenRouter, for the options of a service. A test uses ``router``."""
    with run_openrouter() as fake:
        yield fake


@pytest.fixture
def router(openrouter: FakeOpenRouter) -> FakeOpenRouter:
    """The fake OpenRouter without the changes of other tests."""
    openrouter.reset()
    return openrouter


@pytest.fixture(scope="session")
def _fake() -> Iterator[FakeWattfare]:
    with run_fake_wattfare() as fake:
        yield fake


@pytest.fixture
def fake(_fake: FakeWattfare) -> Iterator[FakeWattfare]:
    """A scripted service. A request outside of the protocol fails the test."""
    _fake.forget()
    yield _fake
    failures = list(_fake.failures)
    _fake.close_all()
    _fake.forget()
    assert not failures, failures


@pytest.fixture(params=["asgi", "wsgi"])
def interface(request: pytest.FixtureRequest) -> str:
    """The interface, ASGI or WSGI. A test of one interface selects it by indirect
    parametrization."""
    return request.param


@pytest.fixture
def drive(interface: str, fake: FakeWattfare) -> Iterator[Drive]:
    """Returns a function that makes a middleware around an app, with these options, and drives
    it."""
    drivers: list[Driver] = []

    def make(**options: Any) -> Driver:
        options.setdefault("resolve_user", lambda request: "user_1")
        if "client" not in options:
            options = {"secret_key": SECRET_KEY, "base_url": fake.url, **options}
        drivers.append(KINDS[interface](**options))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that several processes can share."""
    if request.param == "sqlite":
        yield sqlite_database(tmp_path)
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    with cluster.lent_database() as url:
        yield url


# -- each test


@pytest.fixture(autouse=True)
def _quiet_root_logger() -> None:
    """Resets the logging that a framework configures for its app, so that it does not affect later
    tests."""
    root = logging.getLogger()
    if root.level != logging.WARNING:  # setting it clears a cache of each logger
        root.setLevel(logging.WARNING)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports a missing program once, instead of once for each test that needs it."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        _, _, reason = report.longrepr
        if "To run the rest:" in reason:
            report.longrepr = ("tests", None, reason)
    return report
