"""The label of a user's account: the app's server sends it, and leaves it out if the service
rejects it."""

from __future__ import annotations

import pytest
from support.fake_wattfare import SECRET_KEY, Exchange, FakeWattfare, good

from wattfare_mw import AsyncWattfare, Request, Wattfare, WattfareError


def rejecting(exchange: Exchange) -> None:
    """A service that does not know the field."""
    if exchange.path == "/sessions" and "accountLabel" in exchange.json:
        exchange.error("invalid_request", 400, "Unknown field.")
    else:
        good(exchange)


def client(fake: FakeWattfare) -> Wattfare:
    return Wattfare(SECRET_KEY, base_url=fake.url)


def test_label_is_sent(fake: FakeWattfare) -> None:
    with client(fake) as wf:
        wf.create_session("u", 5, account_label="ada@example.com")
    assert fake.next("/sessions").json == {
        "appUserId": "u",
        "requestLimit": {"monthlyUsd": 5},
        "accountLabel": "ada@example.com",
    }


async def test_async_client_sends_the_label(fake: FakeWattfare) -> None:
    async with AsyncWattfare(SECRET_KEY, base_url=fake.url) as wf:
        await wf.create_session("u", account_label="Ada")
    assert fake.next("/sessions").json == {"appUserId": "u", "accountLabel": "Ada"}


def test_label_is_left_out_for_a_service_that_rejects_it(fake: FakeWattfare) -> None:
    fake.script = rejecting
    with client(fake) as wf:
        for _ in range(2):
            assert wf.create_session("u", account_label="Ada").token
        # The client's copy within a request knows it, too.
        handler = wf.session_handler(lambda request: "u", account_label="Ada")
        assert handler(Request("POST", "/", {})).status == 200
    labels = [exchange.json.get("accountLabel") for exchange in fake.exchanges]
    assert labels == ["Ada", None, None, None]


def test_other_error_is_not_a_rejection_of_the_label(fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.error("invalid_request", 400, "No such user.")
    with client(fake) as wf:
        for _ in range(2):
            with pytest.raises(WattfareError, match="No such user"):
                wf.create_session("u", account_label="Ada")
    labels = [exchange.json.get("accountLabel") for exchange in fake.exchanges]
    assert labels == ["Ada", None, "Ada", None]


def test_label_function_of_the_request(fake: FakeWattfare) -> None:
    with client(fake) as wf:
        handler = wf.session_handler(
            lambda request: "u", account_label=lambda request: request.headers["x-name"]
        )
        assert handler(Request("POST", "/", {"x-name": "Ada"})).status == 200
    assert fake.next("/sessions").json == {"appUserId": "u", "accountLabel": "Ada"}


def test_disconnect_revokes_the_connection(fake: FakeWattfare) -> None:
    with client(fake) as wf:
        wf.user("u").disconnect()
    assert fake.next("/sessions").json == {"appUserId": "u"}
    fake.next("/connections")


async def test_async_disconnect_revokes_the_connection(fake: FakeWattfare) -> None:
    async with AsyncWattfare(SECRET_KEY, base_url=fake.url) as wf:
        await wf.user("u").disconnect()
    fake.next("/sessions")
    fake.next("/connections")


def test_error_of_disconnect_hides_the_token(fake: FakeWattfare) -> None:
    def echo(exchange: Exchange) -> None:
        if exchange.path == "/connections":
            exchange.error("auth", 401, f"Refused: {exchange.headers['authorization']}")
        else:
            good(exchange)

    fake.script = echo
    with client(fake) as wf, pytest.raises(WattfareError) as raised:
        wf.user("u").disconnect()
    assert "a.b.c" not in raised.value.message
    assert SECRET_KEY not in raised.value.message
