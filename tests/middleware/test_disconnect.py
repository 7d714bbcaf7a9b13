"""DELETE on the status path revokes the connection of the user of the request, and no other."""

from __future__ import annotations

from typing import Any

import pytest
from support.drivers import STATUS, Drive
from support.fake_wattfare import FakeWattfare

OTHER = "https://other.example"


def test_delete_revokes_with_a_token_of_the_user(drive: Drive, fake: FakeWattfare) -> None:
    answer = drive(resolve_user=lambda request: "ann").request("DELETE", STATUS)
    assert (answer.status, answer.body) == (204, b"")
    assert fake.next("/sessions").json == {"appUserId": "ann"}
    assert fake.next("/connections").method == "DELETE"


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": OTHER}],
)
def test_other_site_cannot_revoke(
    drive: Drive, fake: FakeWattfare, headers: dict[str, str]
) -> None:
    answer = drive().request("DELETE", STATUS, headers)
    assert (answer.status, answer.code) == (403, "invalid_request")
    assert not fake.exchanges


def test_allowed_origin_can_revoke(drive: Drive) -> None:
    driver = drive(allowed_origins=[OTHER])
    assert driver.request("DELETE", STATUS, {"origin": OTHER}).status == 204


def test_anonymous_visitor_cannot_revoke(drive: Drive, fake: FakeWattfare) -> None:
    answer = drive(resolve_user=lambda request: None).request("DELETE", STATUS)
    assert (answer.status, answer.code) == (401, "auth")
    assert not fake.exchanges


def test_refusal_of_the_service_is_forwarded(drive: Drive, fake: FakeWattfare) -> None:
    def script(exchange: Any) -> None:
        exchange.error("rate_limited", 429, retry_after="3")

    fake.script = script
    answer = drive().request("DELETE", STATUS)
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert answer.headers["retry-after"] == "3"
