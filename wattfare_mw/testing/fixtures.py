"""The pytest plugin, with the fixtures ``wattfare`` and ``wattfare_service``.

pytest loads this module in each run, so it imports only fast modules. The service is imported when
a test first asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .address import Environment, release_address, reserve_address

if TYPE_CHECKING:
    from .service import SharedService, WattfareService

_OPTION = "wattfare_environment"
_environment = pytest.StashKey[Environment]()
_passed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option for apps that read the environment when they are imported."""
    parser.addini(
        _OPTION,
        type="bool",
        default=False,
        help="set WATTFARE_SECRET_KEY and WATTFARE_BASE_URL before any test module is imported",
    )


# `tryfirst`, because other plugins load Django's settings in this hook.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config,
) -> Generator[None]:
    """Set the environment variables, if the option is set."""
    _set_environment(early_config)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment variables if the option is set, and register the marker."""
    config.addinivalue_line(
        "markers",
        "wattfare(allow_reserved=False): allow_reserved=True lets the test end while calls still "
        "reserve a part of a budget",
    )
    _set_environment(config)


def _set_environment(config: pytest.Config) -> None:
    if config.getini(_OPTION) and _environment not in config.stash:
        # Each worker of pytest-xdist has its own address.
        environment = config.stash[_environment] = Environment(reserve_address().environ)
        config.add_cleanup(environment.restore)
        config.add_cleanup(release_address)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record if the test and all its subtests have passed. A test can run again, so its last run
    counts."""
    report = yield
    if report.when == "setup":  # a new run
        item.stash[_passed] = report.passed
    elif not report.passed:
        item.stash[_passed] = False
    return report


@pytest.fixture(scope="session")
def wattfare_service() -> Iterator[SharedService]:
    """The Wattfare service that all tests share. Use it if your code creates its app once for all
    tests: url and secret_key do not change. Each test still has its own users.
    """
    from . import shared_service
    from .servers import stop_servers

    yield shared_service()
    stop_servers()


@pytest.fixture
def wattfare(
    request: pytest.FixtureRequest, wattfare_service: SharedService
) -> Iterator[WattfareService]:
    """A real Wattfare service on a real socket, with a new app for this test. Its users spend a
    fake budget: wattfare.user("ann").connect(5). WATTFARE_SECRET_KEY and WATTFARE_BASE_URL are set
    for the test.
    """
    from . import WattfareService

    service = WattfareService(allow_reserved=_allows_reserved(request.node)).open()
    yield service
    failure = ""
    try:
        # A failed test may have left a stream open, so report only its own failure.
        service.close(check=request.node.stash.get(_passed, True))
    except AssertionError as error:
        failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)


def _allows_reserved(node: Any) -> bool:
    marker = node.get_closest_marker("wattfare")
    options = {} if marker is None else dict(marker.kwargs)
    allowed = options.pop("allow_reserved", False)
    if options or (marker is not None and marker.args):
        raise pytest.UsageError(
            "The only form of this marker is @pytest.mark.wattfare(allow_reserved=True)."
        )
    return bool(allowed)
