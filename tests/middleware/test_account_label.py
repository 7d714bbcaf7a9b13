"""The account label is sent with each session if the service accepts one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.drivers import TOKEN, Drive
from support.fake_wattfare import SESSION, FakeWattfare


def test_label_is_sent_with_a_session(drive: Drive, fake: FakeWattfare) -> None:
    assert drive(account_label="ann@example.com").request("POST", TOKEN).status == 200
    sent = fake.next("/sessions").json
    assert sent == {"appUserId": "user_1", "accountLabel": "ann@example.com"}


async def _async_label(request: Any) -> str:
    return request.headers["x-who"]


@pytest.mark.parametrize("function", [lambda request: request.headers["x-who"], _async_label])
def test_label_function_of_the_request(drive: Drive, fake: FakeWattfare, function: Any) -> None:
    drive(account_label=function).request("POST", TOKEN, {"x-who": "Ann"})
    assert fake.next("/sessions").json["accountLabel"] == "Ann"


def test_label_function_may_return_none(drive: Drive, fake: FakeWattfare) -> None:
    drive(account_label=lambda request: None).request("POST", TOKEN)
    assert fake.next("/sessions").json == {"appUserId": "user_1"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Ann \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}", None),
        ("Ann\N{NO-BREAK SPACE}Lee", None),
        ("\N{ARABIC LETTER BEH}\N{ZERO WIDTH NON-JOINER}\N{ARABIC LETTER BEH}", None),
        ("a" * 200, None),
        ("\U0001f600" * 200, None),
        ("a" * 201, "a" * 200),
        ("two\nlines\tand\N{LINE SEPARATOR}more", "two lines and more"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}Ann\0\x1b[1m\ud83d\N{SOFT HYPHEN}", "Ann[1m"),
        ("  Ann  ", "Ann"),
    ],
)
def test_any_label_chosen_by_a_user_is_accepted(
    drive: Drive, fake: FakeWattfare, name: str, label: str | None
) -> None:
    driver = drive(account_label=lambda request: name)
    assert driver.request("POST", TOKEN).status == 200
    assert fake.next("/sessions").json["accountLabel"] == (label or name)


@pytest.mark.parametrize("name", ["", "  ", "\0\n", "\N{ZERO WIDTH SPACE}"])
def test_blank_label_is_left_out(drive: Drive, fake: FakeWattfare, name: str) -> None:
    assert drive(account_label=lambda request: name).request("POST", TOKEN).status == 200
    assert fake.next("/sessions").json == {"appUserId": "user_1"}


@pytest.mark.parametrize("label", [7, b"ann"])
def test_invalid_label_is_the_apps_error(
    drive: Drive, fake: FakeWattfare, caplog: pytest.LogCaptureFixture, label: Any
) -> None:
    answer = drive(account_label=lambda request: label).request("POST", TOKEN)
    assert (answer.status, answer.code) == (500, "unknown")
    assert not fake.exchanges
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "account_label" in record.getMessage()
    assert "An account label must be a string" in record.getMessage()


def test_invalid_constant_label_stops_the_start(drive: Drive) -> None:
    with pytest.raises(Exception, match="An account label must be a string"):
        drive(account_label=7)


@pytest.mark.parametrize("status", [400, 422])
def test_service_without_labels_gets_no_label(
    drive: Drive, fake: FakeWattfare, status: int
) -> None:
    def script(exchange: Any) -> None:
        if "accountLabel" in exchange.json:
            exchange.error("invalid_request", status)
        else:
            exchange.answer(SESSION)

    fake.script = script
    driver = drive(account_label="Ann")
    for _ in range(2):
        assert driver.request("POST", TOKEN).json == SESSION
    # The label was sent once.
    assert ["accountLabel" in each.json for each in fake.exchanges] == [True, False, False]


def test_other_refusal_is_not_blamed_on_the_label(drive: Drive, fake: FakeWattfare) -> None:
    answers = iter([400, 400, 200])

    def script(exchange: Any) -> None:
        status = next(answers)
        if status == 200:
            exchange.answer(SESSION)
        else:
            exchange.error("invalid_request", status)

    fake.script = script
    driver = drive(account_label="Ann")
    assert driver.request("POST", TOKEN).status == 400
    assert driver.request("POST", TOKEN).status == 200
    assert ["accountLabel" in each.json for each in fake.exchanges] == [True, False, True]
