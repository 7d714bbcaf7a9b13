"""A publishable key is public: anyone can copy it from an app's page and open grant approvals with
it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.people import ORIGIN, RETURN_URL, ask, live_app, post
from support.service import App, Service, bearer

from wattfare_mw.errors import WattfareRateLimitError
from wattfare_mw.service.api import rate_limits
from wattfare_mw.service.api.rate_limits import RateLimits


@pytest.fixture
def app(own_service: Service) -> Iterator[App]:
    with live_app(own_service) as fresh:
        yield fresh


def test_grants_do_not_use_up_the_connection_limit_of_an_address(app: App) -> None:
    body = {"returnUrl": RETURN_URL, "requests": 1}
    headers = {**bearer(app.keys.publishable_key), "origin": ORIGIN}
    most = rate_limits.APPROVALS.most
    assert most is not None
    for _ in range(most):
        assert app.http.post("/approvals", json=body, headers=headers).status_code == 200
    assert app.http.post("/approvals", json=body, headers=headers).status_code == 429
    assert ask(app)["url"]


def test_one_user_at_the_approval_limit_does_not_block_others(app: App) -> None:
    token, other = app.token("greedy"), app.token("quiet")
    most = rate_limits.USER_APPROVALS.most
    assert most is not None
    for _ in range(most):
        ask(app, token=token)
    refused = post(app, "/approvals", token, {"returnUrl": RETURN_URL})
    assert refused.status_code == 429
    assert "for this user" in refused.json()["error"]["message"]
    ask(app, token=other)


async def test_many_addresses_do_not_use_up_the_connection_limit_of_an_app() -> None:
    """An IPv6 network has as many addresses as it wants."""
    limits = RateLimits()
    most = rate_limits.APPROVALS.app
    assert most is not None
    for number in range(most):
        await limits.approval("app", f"2001:db8:0:{number:x}::/64")
    with pytest.raises(WattfareRateLimitError):
        await limits.approval("app", "192.0.2.1")
    await limits.user_approval("app", "u1")
