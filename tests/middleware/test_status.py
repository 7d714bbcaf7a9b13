"""The status path: a budget bar needs no token."""

from __future__ import annotations

from typing import Any

import pytest
from support.drivers import STATUS, Drive
from support.fake_wattfare import STATUS as TOLD
from support.fake_wattfare import FakeWattfare


def test_get_returns_the_status(drive: Drive, fake: FakeWattfare) -> None:
    answer = drive(resolve_user=lambda request: "ü ser&/%").request("GET", STATUS)
    assert answer.status == 200
    assert answer.json == TOLD
    assert answer.headers["cache-control"] == "no-store"
    assert fake.next("/status").query == {"appUserId": ["ü ser&/%"]}


def test_head_returns_no_body(drive: Drive) -> None:
    driver = drive()
    head, get = driver.request("HEAD", STATUS), driver.request("GET", STATUS)
    assert (head.status, head.body) == (200, b"")
    for answer in (head, get):
        answer.fields.remove(("x-request-id", answer.headers["x-request-id"]))
    assert head.headers == get.headers


def test_user_without_a_connection_gets_a_status(drive: Drive, fake: FakeWattfare) -> None:
    told = {"connected": False, "limits": None, "usage": {"monthlyUsd": 0}, "remainingUsd": 0}
    fake.script = lambda exchange: exchange.answer(told)
    answer = drive().request("GET", STATUS)
    assert (answer.status, answer.json) == (200, told)


def test_amounts_keep_every_digit(drive: Drive, fake: FakeWattfare) -> None:
    told = (
        '{"connected":true,"limits":{"monthlyUsd":20.00},"usage":{"monthlyUsd":0.100000001},'
        '"remainingUsd":19.899999999}'
    )
    fake.script = lambda exchange: exchange.answer(told)
    body = drive().request("GET", STATUS).body
    assert b"0.100000001" in body
    assert b"19.899999999" in body


def test_anonymous_visitor_is_refused(drive: Drive, fake: FakeWattfare) -> None:
    driver = drive(resolve_user=lambda request: None)
    answer = driver.request("GET", STATUS)
    assert (answer.status, answer.code) == (401, "auth")
    answer = driver.request("HEAD", STATUS)
    assert (answer.status, answer.body) == (401, b"")
    assert int(answer.headers["content-length"]) > 0
    assert not fake.exchanges


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(drive: Drive, fake: FakeWattfare, method: str) -> None:
    answer = drive().request(method, STATUS)
    assert (answer.status, answer.code) == (405, "invalid_request")
    assert answer.headers["allow"] == "GET, HEAD, DELETE"
    assert not fake.exchanges


@pytest.mark.parametrize("told", ["[]", "{}", '{"connected": "yes"}', "<html>", '{"connected": tr'])
def test_invalid_status_of_the_service_is_502(drive: Drive, fake: FakeWattfare, told: str) -> None:
    fake.script = lambda exchange: exchange.answer(told)
    answer = drive().request("GET", STATUS)
    assert (answer.status, answer.code) == (502, "unknown")


def test_status_is_retried_once(drive: Drive, fake: FakeWattfare) -> None:
    left = [("upstream", 503)]

    def script(exchange: Any) -> None:
        if left:
            exchange.error(*left.pop())
        else:
            exchange.answer(TOLD)

    fake.script = script
    assert drive().request("GET", STATUS).status == 200
    assert len(fake.exchanges) == 2
