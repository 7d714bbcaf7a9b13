"""A live app, and people who may pay for its users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.people import Person, live_app
from support.service import App, Service


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    """A live app with a registered origin."""
    with live_app(service) as fresh:
        yield fresh


@pytest.fixture
def person(service: Service) -> Iterator[Person]:
    with Person(service) as fresh:
        yield fresh


@pytest.fixture
def other_person(service: Service) -> Iterator[Person]:
    with Person(service) as fresh:
        yield fresh
