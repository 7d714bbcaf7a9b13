"""The calls as plain values: their requests for any user id, and when they are retried."""

from __future__ import annotations

import random
import string
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wattfare_mw import (
    Timeout,
    WattfareAuthError,
    WattfareError,
    WattfareNetworkError,
    WattfareRateLimitError,
    calls,
)
from wattfare_mw.calls import Caller
from wattfare_mw.retries import MAX_RETRY_DELAY, retry_delay
from wattfare_mw.types import check_user_id

SERVICE = Caller("sk_test_1", "https://w.test", Timeout(), 2)
IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=256)


@given(IDS)
@example("%")
@example("%41")
@example(" ")
@example("\x01\r\n")
@example("ü€🙂\u2028")
@example("a" * 256)
@example("🙂" * 256)
@example("..")
@example("a&b=c#d?e+f/g;h")
def test_any_user_id_survives_encoding(user_id: str) -> None:
    payer = calls.payer_of(user_id)
    assert payer.header == "x-wattfare-user"
    header = payer.value
    assert all(0x21 <= ord(char) <= 0x7E for char in header)
    assert unquote(header, errors="strict") == user_id
    plain = set(map(chr, range(0x21, 0x7F))) - {"%"}
    if set(user_id) <= plain:
        assert header == user_id
    url = SERVICE.request(calls.status(user_id)).url
    assert all(0x21 <= ord(char) <= 0x7E for char in url)
    parts = urlsplit(url)
    assert (parts.path, parts.fragment) == ("/api/v1/status", "")
    assert parse_qs(parts.query, strict_parsing=True) == {"appUserId": [user_id]}


@given(st.text(max_size=300))
@example("")
@example("a" * 256)
@example("a" * 257)
@example("🙂" * 257)
@example("\ud800")
@example("a\0")
def test_user_id_is_valid_or_refused(user_id: str) -> None:
    halves = any("\ud800" <= char <= "\udfff" for char in user_id)
    if 1 <= len(user_id) <= 256 and "\0" not in user_id and not halves:
        assert check_user_id(user_id) == user_id
        return
    for refuses in (check_user_id, calls.status, calls.create_session):
        with pytest.raises(WattfareError) as caught:
            refuses(user_id)
        assert caught.value.code == "invalid_request"


@given(st.text(max_size=40))
def test_grant_token_is_sent_unchanged_or_refused(token: str) -> None:
    visible = set(token) <= set(map(chr, range(0x21, 0x7F)))
    if token and visible:
        assert calls.grant_payer(token) == calls.Payer("x-wattfare-grant", token)
        assert token not in repr(calls.grant_payer(token)) or len(token) < 20
    else:
        with pytest.raises(WattfareError) as caught:
            calls.grant_payer(token)
        assert caught.value.code == "grant_invalid"


def test_forwarded_headers_do_not_override_credentials() -> None:
    call = calls.relayed_completion(
        calls.payer_of("u1"), b"{}", {"x-wattfare-user": "evil", "authorization": "Bearer evil"}
    )
    request = SERVICE.request(call)
    assert request.headers["x-wattfare-user"] == "u1"
    assert request.headers["authorization"] == "Bearer sk_test_1"


# -- when a call is retried

FAILURES = [
    WattfareNetworkError(sent=False),
    WattfareNetworkError(sent=True),
    WattfareRateLimitError(),
    WattfareError(status=500),
    WattfareError(status=503, code="upstream"),
]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("attempt", range(6))
def test_retry_delay_grows_and_varies(failure: WattfareError, attempt: int) -> None:
    most = min(0.5 * 2**attempt, 8.0)
    waits = {retry_delay(failure, attempt, repeatable=True) for _ in range(200)}
    assert all(wait is not None and most / 2 <= wait <= most for wait in waits)
    assert len(waits) > 100


def test_bounds_of_the_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    for edge, expected in ((0, 0.5), (1, 1.0)):
        monkeypatch.setattr(random, "uniform", lambda low, high, e=edge: (low, high)[e])
        assert retry_delay(WattfareRateLimitError(), 1, repeatable=True) == expected
        assert retry_delay(WattfareRateLimitError(), 30, repeatable=True) == 8 * (0.5, 1)[edge]
        assert retry_delay(WattfareRateLimitError(), 5000, repeatable=True) == 8 * (0.5, 1)[edge]


@pytest.mark.parametrize("failure", FAILURES[1:])
def test_inference_is_not_retried(failure: WattfareError) -> None:
    assert retry_delay(failure, 0, repeatable=False) is None
    assert retry_delay(FAILURES[0], 0, repeatable=False) is not None


@pytest.mark.parametrize("status", [200, 302, 400, 401, 402, 403, 404, 409, 413, 422])
def test_error_of_the_caller_is_not_retried(status: int) -> None:
    for cls in (WattfareError, WattfareAuthError):
        assert retry_delay(cls(status=status), 0, repeatable=True) is None


@given(st.floats(min_value=0, max_value=86_400), st.integers(0, 10))
def test_retry_after_is_the_minimum_delay(seconds: float, attempt: int) -> None:
    assume(seconds > 0)
    failure = WattfareRateLimitError(retry_after=seconds)
    delay = retry_delay(failure, attempt, repeatable=True)
    if delay is None:
        assert seconds > MAX_RETRY_DELAY
    else:
        assert seconds <= delay <= MAX_RETRY_DELAY


# -- how flows end


class Answer:
    def __init__(self, status: int) -> None:
        self.status = status
        self.headers: dict[str, str] = {}


def test_interrupt_propagates_through_a_flow() -> None:
    from wattfare_mw.flow import run

    def perform(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SERVICE.fetch(calls.status("u")), perform)


def test_open_answer_is_not_read() -> None:
    from wattfare_mw.flow import run

    answer = Answer(200)

    def perform(need: Any) -> Any:
        assert isinstance(need, calls.Send)
        return answer

    call = calls.relayed_completion(calls.payer_of("u"), b"{}", {})
    assert run(SERVICE.open(call), perform) is answer


def test_header_safe_covers_printable_ascii() -> None:
    assert set(string.printable.strip()) - {"%"} <= set(calls._HEADER_SAFE)
