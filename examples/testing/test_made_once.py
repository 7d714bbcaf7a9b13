"""Tests that share one app. Run them: pytest examples/testing"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wattfare_mw import Wattfare
from wattfare_mw.testing import SharedService, WattfareService


@pytest.fixture(scope="session")
def app(wattfare_service: SharedService) -> Iterator[Wattfare]:
    with Wattfare(wattfare_service.secret_key, base_url=wattfare_service.url) as wf:
        yield wf


@pytest.mark.parametrize("budget", [5, "0.01"])
def test_each_test_has_its_own_budget(
    app: Wattfare, wattfare: WattfareService, budget: int | str
) -> None:
    wattfare.user("ann").connect(budget)

    app.user("ann").model("openai/gpt-5").generate("How is Ann today?")

    assert len(wattfare.calls) == 1
