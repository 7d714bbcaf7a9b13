"""One browser for each worker, one profile for each person."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.chromium import chromium, run_chromium
from support.shared_run import SharedRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from browsers.people import Person
    from browsers.site import Site

# `make test` has no Playwright, and needs no Chromium.
collect_ignore_glob = [] if importlib.util.find_spec("playwright") else ["test_*.py"]


@pytest.fixture(scope="session")
def browser(shared_run: SharedRun) -> Iterator[Browser]:
    """One Chromium for this worker."""
    with run_chromium(chromium(shared_run)) as running:
        yield running


@pytest.fixture
def new_person(browser: Browser) -> Iterator[Callable[..., Person]]:
    """Creates people: ``new_person(viewport=PHONE)``. See :class:`browsers.people.Person`."""
    from browsers.people import Person

    people: list[Person] = []

    def make(**options: Any) -> Person:
        people.append(Person(browser, options))
        return people[-1]

    yield make
    for person in people:
        person.close()
    problems = [problem for person in people for problem in person.unexpected()]
    assert not problems, problems


@pytest.fixture
def person(new_person: Callable[..., Person]) -> Person:
    """A person at a desktop browser."""
    return new_person()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service and a live app in front of it. Each person is a new user of the app."""
    from browsers.site import run_site

    with run_site(tmp_path_factory.mktemp("site")) as running:
        yield running
