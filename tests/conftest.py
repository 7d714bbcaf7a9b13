"""What every test starts from: the fixtures of several folders, and which tests are fast."""

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
from support.examples import load_profile
from support.fake_openrouter import FakeOpenRouter, run_openrouter
from support.fake_wattfare import FakeWattfare, run_fake_wattfare
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

# Where the package is installed, pytest has loaded it already.
pytest_plugins = ["wattfare_mw.testing.plugin"]

#: Modules whose tests take many seconds each.
LONG = {"test_quick", "test_deaths", "test_demo", "test_ledger", "test_pauses", "test_processes"}
#: Modules that have some such tests. They and those above come first.
FIRST = {*LONG, "test_examples", "test_large_bodies", "test_lost_calls", "test_media"}
FIRST |= {"test_pairs", "test_passwords", "test_stopped_streams", "test_unpriced"}
FIRST |= {"test_upstreams", "test_wrapped_app"}
#: What a test or a fixture calls to start a process.
STARTERS = {"run_service", "run_cli", "run_cluster", "run_forked", "run_sdk", "run_server"}
STARTERS |= {"getfixturevalue", "loaded_by", "serving", "shared_cluster", "shared_redis"}
STARTERS |= {"WattfareService", "shared_service", "subprocess", "uvicorn_process"}
STARTERS |= {"victim", "victim_at"}
#: Modules that are not fast, although their tests have none of these: they write to a database on
#: the disk, start processes in other ways, wait for the timeouts of real connections, or read long
#: texts.
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
SLOW |= {"test_current_user_gevent", "test_full_disk", "test_gevent", "test_silence"}


# -- one run, in one process or in several

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
    """Tell each worker of pytest-xdist what it shares with the others."""
    node.workerinput["shared_run"] = str(node.config.stash[_run].folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for each core: many tests wait for a process or a timeout. The fast ones do not,
    and each worker takes seconds to load them."""
    cores = os.cpu_count() or 1
    return cores if config.option.markexpr == "fast" else 2 * cores


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast tests, and put the long ones first, so that no worker ends with one."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if is_fast(item):
            item.add_marker("fast")


def is_fast(item: pytest.Item) -> bool:
    """Does it start no process, use no database on the disk, and take no long time?"""
    slow = item.path.stem in SLOW or item.get_closest_marker("long") is not None
    if slow or not isinstance(item, pytest.Function):
        return False
    fixtures = chain.from_iterable(item._fixtureinfo.name2fixturedefs.values())
    return not any(map(starts_a_process, [item.function, *(each.func for each in fixtures)]))


@cache
def starts_a_process(function: Callable[..., Any]) -> bool:
    """Does a test or a fixture do so, as far as its own code says?"""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and not STARTERS.isdisjoint(names_in(code))


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function inside of it
            yield from names_in(constant)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Let no garbage collection look at the tests and the modules, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shared_run(request: pytest.FixtureRequest) -> SharedRun:
    """What this process shares with the other workers of the run."""
    return request.config.stash[_run]


# -- servers: each is started when the first test asks for it


@pytest.fixture(scope="session")
def cluster(shared_run: SharedRun) -> Cluster:
    """The PostgreSQL server of the run. A test asks it for a database of its own."""
    return shared_cluster(shared_run)


@pytest.fixture(scope="session")
def redis_url(shared_run: SharedRun) -> str:
    """The Redis server of the run."""
    return shared_redis(shared_run)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the built-in model. A test makes an app of its own in it."""
    with run_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    with run_upstream() as fake:
        yield fake


@pytest.fixture
def upstream(_upstream: Upstream) -> Iterator[Upstream]:
    """A fake upstream, without what other tests did with it."""
    _upstream.reset()
    yield _upstream
    failures = list(_upstream.failures)
    _upstream.failures.clear()
    _upstream.reset()  # for what a module starts before its first test
    assert not failures, failures


@pytest.fixture(scope="session")
def forwarding(tmp_path_factory: pytest.TempPathFactory, _upstream: Upstream) -> Iterator[Service]:
    """A service in front of the fake upstream, for whose use nobody is asked a key."""
    with run_service(tmp_path_factory.mktemp("forwarding"), "--upstream", _upstream.url) as running:
        yield running


@pytest.fixture(scope="session")
def openrouter() -> Iterator[FakeOpenRouter]:
    """A fake OpenRouter, for the options of a service. A test asks for ``router``."""
    with run_openrouter() as fake:
        yield fake


@pytest.fixture
def router(openrouter: FakeOpenRouter) -> FakeOpenRouter:
    """The fake OpenRouter, without what other tests did with it."""
    openrouter.reset()
    return openrouter


@pytest.fixture(scope="session")
def _fake() -> Iterator[FakeWattfare]:
    with run_fake_wattfare() as fake:
        yield fake


@pytest.fixture
def fake(_fake: FakeWattfare) -> Iterator[FakeWattfare]:
    """A scripted service. A request that the protocol does not allow fails the test."""
    _fake.forget()
    yield _fake
    failures = list(_fake.failures)
    _fake.close_all()
    _fake.forget()
    assert not failures, failures


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One that several processes can share."""
    if request.param == "sqlite":
        return sqlite_database(tmp_path)
    return request.getfixturevalue("cluster").database()


# -- each test


@pytest.fixture(autouse=True)
def _quiet_root_logger() -> None:
    """A framework that sets logging up for its app sets it up for all tests behind it, too."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a machine lacks is told in one line, and not in one for each test that needs it."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        _, _, reason = report.longrepr
        if "To have the rest:" in reason:
            report.longrepr = ("tests", None, reason)
    return report
