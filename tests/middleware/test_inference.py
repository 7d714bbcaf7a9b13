"""The inference path: what is forwarded in both directions, who pays, and what `on_usage` gets."""

from __future__ import annotations

import asyncio
import json
import logging
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drivers import INFERENCE, JSON, KINDS, Drive, body_of
from support.examples import examples
from support.fake_wattfare import (
    COMPLETION,
    DONE,
    SECRET_KEY,
    USAGE,
    FakeWattfare,
    event,
    run_fake_wattfare,
    word,
)

from wattfare_mw import TokenUsage


def test_bytes_are_forwarded_unchanged_both_ways(drive: Drive, fake: FakeWattfare) -> None:
    up = '{ "model":"openai/gpt-4o",\r\n"x":1e-9, "ü": "\\u00fc\u2028", "stream": null }'.encode()
    down = '{"choices": [], "n": 0.10, "ü":"\\u00fc",\n "usage": null }\n'.encode()
    fake.script = lambda exchange: exchange.answer(down)
    answer = drive().request("POST", INFERENCE, JSON, up)
    assert answer.status == 200
    assert answer.body == down
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["content-length"] == str(len(down))
    exchange = fake.next()
    assert exchange.body == up
    assert exchange.user == "user_1"


@pytest.mark.parametrize(
    "user", ["ü ser/%41?&=", "😀", " a", "%", "a,b", "\r\nx-evil: 1", "\u2028a"]
)
def test_any_user_can_pay(drive: Drive, fake: FakeWattfare, user: str) -> None:
    driver = drive(resolve_user=lambda request: user)
    assert driver.request("POST", INFERENCE, JSON, body_of()).status == 200
    assert fake.next().user == user


def test_listed_request_headers_are_forwarded(drive: Drive, fake: FakeWattfare) -> None:
    allowed = {
        "content-type": "application/json; charset=utf-8",
        "accept": "text/event-stream",
        "idempotency-key": "i-1",
        "x-wattfare-on-low-budget": "refuse",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "x-request-id": "r-1",
    }
    others = {
        "cookie": "session=1",
        "authorization": "Bearer browser",
        "x-wattfare-user": "another user",
        "accept-encoding": "gzip, br",
        "connection": "close",
        "te": "trailers",
        "upgrade": "h2c",
        "proxy-authorization": "x",
        "x-forwarded-for": "1.2.3.4",
        "user-agent": "browser",
        "referer": "http://testserver/",
        "x-anything": "1",
    }
    driver = drive()
    assert driver.request("POST", INFERENCE, {**allowed, **others}, body_of()).status == 200
    got = fake.next().headers  # which has checked all allowed names
    assert {name: got[name] for name in allowed} == allowed
    assert got["x-wattfare-user"] == "user_1"
    assert got["authorization"] == f"Bearer {SECRET_KEY}"
    assert got["user-agent"] == "wattfare-mw-python"


@pytest.mark.parametrize("name", ["idempotency-key", "traceparent", "accept", "content-type"])
@pytest.mark.parametrize("value", ["ü", "a\x00b", "a\x7fb", "a\tb", "\x80", "", " "])
def test_unsendable_header_is_left_out(
    drive: Drive, fake: FakeWattfare, name: str, value: str
) -> None:
    headers = {**JSON, name: f"application/json;{value}" if name == "content-type" else value}
    assert drive().request("POST", INFERENCE, headers, body_of()).status == 200
    fake.next()  # which has checked that its header values are printable


def test_listed_response_headers_are_forwarded(drive: Drive, fake: FakeWattfare) -> None:
    allowed = {"x-wattfare-max-tokens": "77", "x-wattfare-reserved": "0.5", "retry-after": "3"}
    others = {
        "set-cookie": "session=theirs",
        "x-request-id": "theirs",
        "server": "theirs",
        "access-control-allow-origin": "*",
        "cache-control": "public, max-age=3600",
        "keep-alive": "timeout=5",
        "strict-transport-security": "max-age=1",
        "x-powered-by": "x",
        "openai-organization": "org-1",
    }
    fake.script = lambda exchange: exchange.answer(COMPLETION, headers={**allowed, **others})
    answer = drive().request("POST", INFERENCE, {**JSON, "x-request-id": "mine"}, body_of())
    assert answer.headers == {
        **allowed,
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "cache-control": "no-store",
        "x-accel-buffering": "no",
        "x-request-id": "mine",
    }


def test_sent_call_is_not_retried(drive: Drive, fake: FakeWattfare) -> None:
    error = {"error": {"code": "invalid_request", "message": "It has been made."}}
    fake.script = lambda exchange: exchange.answer(error, status=409)
    answer = drive().request("POST", INFERENCE, JSON, body_of())
    assert (answer.status, answer.code) == (409, "invalid_request")
    assert answer.headers["x-should-retry"] == "false"  # which openai's clients obey


def test_cookie_of_one_call_is_not_sent_with_the_next(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.answer(
        COMPLETION, headers={"set-cookie": "a=1; Path=/"}
    )
    driver = drive()
    for _ in range(2):
        assert driver.request("POST", INFERENCE, JSON, body_of()).status == 200
    assert [("cookie" in exchange.headers) for exchange in fake.exchanges] == [False, False]


def test_anonymous_visitor_is_refused(drive: Drive, fake: FakeWattfare) -> None:
    answer = drive(resolve_user=lambda r: None).request("POST", INFERENCE, JSON, body_of())
    assert (answer.status, answer.code) == (401, "auth")
    assert not fake.exchanges


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("not_connected", 402),
        ("budget_exceeded", 402),
        ("funding_invalid", 402),
        ("rate_limited", 429),
        ("invalid_request", 400),
        ("upstream", 502),
        ("auth", 401),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusal_is_forwarded_unchanged(
    drive: Drive, fake: FakeWattfare, code: str, status: int, stream: bool
) -> None:
    fake.script = lambda exchange: exchange.error(code, status, "Because.", retry_after="9")
    answer = drive().request("POST", INFERENCE, JSON, body_of(stream=stream))
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["message"] == "Because."
    assert answer.headers["retry-after"] == "9"
    assert len(fake.exchanges) == 1  # a call that may have been billed is never retried


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (lambda x: x.answer("<html>", content_type="text/html"), 502, "unknown"),
        (lambda x: x.answer("{}", content_type=None), 502, "unknown"),
        (lambda x: x.answer('{"choices": [', content_type="application/json"), 502, "unknown"),
        (lambda x: x.answer(b"\xff\xfe", content_type="application/json"), 502, "unknown"),
        (lambda x: x.answer(b"", status=204, content_type=None), 502, "unknown"),
        (lambda x: x.answer("", status=307, headers={"location": "/x"}), 502, "unknown"),
        (lambda x: x.answer("<html>", status=504, content_type="text/html"), 504, "upstream"),
        (lambda x: x.reset(), 502, "network"),
        (lambda x: (x.head(200, {"content-length": "99"}), x.hang_up()), 502, "network"),
        (lambda x: (x.start_stream("application/json"), x.chunk(b"{"), x.reset()), 502, "network"),
        (
            lambda x: (x.start_stream("application/json"), x.send(b"zz\r\n"), x.hang_up()),
            502,
            "network",
        ),
        (lambda x: (x.send(b"HTTP/1.1 200 OK\r\n" + b"a" * 99_999), x.hang_up()), 502, "network"),
        (lambda x: (x.send(b"HTTP/9.9 2000 OK\r\n\r\n"), x.hang_up()), 502, "network"),
        (lambda x: (x.head(200, {"content-length": "-5"}), x.hang_up()), 502, "network"),
        (
            lambda x: (
                x.head(200, {"content-length": "1", "transfer-encoding": "chunked"}),
                x.hang_up(),
            ),
            502,
            "network",
        ),
    ],
)
def test_answer_outside_of_the_protocol_is_replaced(
    drive: Drive, fake: FakeWattfare, script: Any, status: int, code: str
) -> None:
    fake.script = script
    answer = drive().request("POST", INFERENCE, JSON, body_of())
    assert (answer.status, answer.code) == (status, code)
    assert len(fake.exchanges) == 1


def test_unexpectedly_compressed_answer_passes_unread(drive: Drive, fake: FakeWattfare) -> None:
    reports: list[Any] = []
    fake.script = lambda x: x.answer(b"\x1f\x8b...", headers={"content-encoding": "gzip"})
    driver = drive(on_usage=lambda *args: reports.append(args))
    answer = driver.request("POST", INFERENCE, JSON, body_of())
    assert (answer.status, answer.body) == (200, b"\x1f\x8b...")
    assert answer.headers["content-encoding"] == "gzip"
    assert reports == [("user_1", "openai/gpt-4o", None, None)]


# -- which requests are accepted


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"),
        *("application/jsonp", "text/json", "application/json, text/plain", "application/json5"),
        *("text/plain; application/json", "application/problem+json", "json"),
    ],
)
def test_other_content_type_is_refused(
    drive: Drive, fake: FakeWattfare, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = drive().request("POST", INFERENCE, headers, body_of())
    assert (answer.status, answer.code) == (415, "invalid_request")
    assert not fake.exchanges


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=UTF-8",
        "application/json ;",
    ],
)
def test_each_spelling_of_the_json_type_is_accepted(drive: Drive, content_type: str) -> None:
    answer = drive().request("POST", INFERENCE, {"content-type": content_type}, body_of())
    assert answer.status == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"model"', b"1", b"{}{}", b'{"model": "a",}', b"\x00"),
        *(b'{"model": 1}', b'{"model": ["a"]}', b'{"models": "a"}', b'{"models": [null]}'),
        *(b'{"stream": "yes"}', b'{"stream": 1}', b'{"stream_options": []}', b'{"model": "\xff"}'),
        *(b'\xef\xbb\xbf{"model": "a"}', '{"model": "a"}'.encode("utf-16"), b"[" * 100_000),
        b'{"a":' * 100_000,
    ],
)
def test_invalid_completion_request_is_refused(
    drive: Drive, fake: FakeWattfare, body: bytes
) -> None:
    answer = drive().request("POST", INFERENCE, JSON, body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert not fake.exchanges


def test_body_of_exactly_the_limit_is_accepted(drive: Drive, fake: FakeWattfare) -> None:
    body = body_of()
    driver = drive(max_body_bytes=len(body))
    assert driver.request("POST", INFERENCE, JSON, body).status == 200
    answer = driver.request("POST", INFERENCE, JSON, body + b" ")
    assert (answer.status, answer.code) == (413, "invalid_request")
    assert len(fake.exchanges) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_are_refused(drive: Drive, fake: FakeWattfare, method: str) -> None:
    answer = drive().request(method, INFERENCE, JSON)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert answer.code == "invalid_request"
    assert not fake.exchanges


# -- who pays


def never(request: Any) -> str:
    raise AssertionError("resolve_user was called")


def test_grant_pays_without_resolve_user(drive: Drive, fake: FakeWattfare, caplog: Any) -> None:
    reports: list[Any] = []
    driver = drive(
        resolve_user=never, allow_grants=True, on_usage=lambda *args: reports.append(args)
    )
    caplog.set_level(logging.DEBUG)
    headers = {**JSON, "X-Wattfare-Grant": "gr_1.abc"}
    assert driver.request("POST", INFERENCE, headers, body_of()).status == 200
    exchange = fake.next()
    assert exchange.headers["x-wattfare-grant"] == "gr_1.abc"
    assert "x-wattfare-user" not in exchange.headers
    usage = TokenUsage(5, 3, 8)
    assert reports == [(None, "openai/gpt-4o", usage, Decimal("0.000011"))]
    assert "gr_1.abc" not in caplog.text


@pytest.mark.parametrize("grant", ["gr_1.abc", "", " ", "ü"])
def test_refused_grant_is_never_billed_to_the_user(
    drive: Drive, fake: FakeWattfare, grant: str
) -> None:
    headers = {**JSON, "x-wattfare-grant": grant}
    answer = drive(resolve_user=never).request("POST", INFERENCE, headers, body_of())
    assert (answer.status, answer.code) == (403, "invalid_request")
    assert not fake.exchanges


@pytest.mark.parametrize("grant", ["", " ", "a b", "ü", "a\x00", "a\tb"])
def test_invalid_grant_is_never_billed_to_the_user(
    drive: Drive, fake: FakeWattfare, grant: str
) -> None:
    driver = drive(resolve_user=never, allow_grants=True)
    headers = {**JSON, "x-wattfare-grant": grant}
    answer = driver.request("POST", INFERENCE, headers, body_of())
    assert (answer.status, answer.code) == (402, "grant_invalid")
    assert not fake.exchanges


def test_user_can_pay_if_grants_are_allowed(drive: Drive, fake: FakeWattfare) -> None:
    assert drive(allow_grants=True).request("POST", INFERENCE, JSON, body_of()).status == 200
    assert fake.next().user == "user_1"


# -- what on_usage gets


async def _async_record_usage(*args: Any) -> None:
    await asyncio.sleep(0)
    _RECORDED.append(args)


_RECORDED: list[Any] = []


def _record_usage(*args: Any) -> None:
    _RECORDED.append(args)


@pytest.mark.parametrize("on_usage", [_record_usage, _async_record_usage])
@pytest.mark.parametrize("stream", [False, True])
def test_on_usage_is_called(drive: Drive, on_usage: Any, stream: bool) -> None:
    _RECORDED.clear()
    body = body_of(stream=stream)
    assert drive(on_usage=on_usage).request("POST", INFERENCE, JSON, body).status == 200
    usage = TokenUsage(5, 3, 8)
    assert [("user_1", "openai/gpt-4o", usage, Decimal("0.000011"))] == _RECORDED


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_error_in_on_usage_does_not_affect_the_answer(
    drive: Drive, caplog: Any, stream: bool, is_async: bool
) -> None:
    def raises(*args: Any) -> None:
        raise ValueError("the database is away")

    async def raises_later(*args: Any) -> None:
        await asyncio.sleep(0)
        raises()

    driver = drive(on_usage=raises_later if is_async else raises)
    headers = {**JSON, "x-request-id": "r-3"}
    answer = driver.request("POST", INFERENCE, headers, body_of(stream=stream))
    assert answer.status == 200
    assert b"database" not in answer.body
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "wattfare_mw")
    assert "r-3" in record.getMessage()
    assert "the database is away" in caplog.text


def test_invalid_usage_counts_as_unknown(drive: Drive, fake: FakeWattfare) -> None:
    _RECORDED.clear()
    fake.script = lambda x: x.answer({"usage": {"prompt_tokens": "many", "cost": "a lot"}})
    assert drive(on_usage=_record_usage).request("POST", INFERENCE, JSON, body_of()).status == 200
    assert _RECORDED == [("user_1", "openai/gpt-4o", None, None)]


EVENTS = [
    b": OPENROUTER PROCESSING\n\n",
    word("one ", usage=None),
    b"event: message\r\nid: 7\r\ndata: " + word("two")[6:-2] + b"\r\n\r\n",
    b'data: {"choices": [], "prompt_filter_results": []}\n\n',
    b"data: \ndata:\n\n",
]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"stream_options": None}, {"stream_options": {"x": 1.50}}),
        *({"usage": None}, {"usage": {"include": False}}, {"usage": {"include": "yes"}}),
        *({"usage": 1}, {"usage": []}),
    ],
)
def test_usage_that_the_browser_did_not_request_is_removed(
    drive: Drive, fake: FakeWattfare, options: Any, at_once: bool
) -> None:
    _RECORDED.clear()
    reports = event({"id": "c1", "choices": [], "usage": USAGE})
    events = [*EVENTS, reports, DONE]
    fake.script = lambda x: x.stream(b"".join(events)) if at_once else x.stream(*events)
    sent = body_of(stream=True, messages=[{"content": "\u2028 ü"}], n=12345678901234567890123)
    sent = json.dumps({**json.loads(sent), **options}).encode()
    answer = drive(on_usage=_record_usage).request("POST", INFERENCE, JSON, sent)
    assert answer.body == b"".join([*EVENTS, DONE])
    got = fake.next().json
    expected = {**(options.get("stream_options") or {}), "include_usage": True}
    assert got.pop("stream_options") == expected
    assert got == {k: v for k, v in json.loads(sent).items() if k != "stream_options"}
    assert [("user_1", "openai/gpt-4o", TokenUsage(5, 3, 8), Decimal("0.000011"))] == _RECORDED


@pytest.mark.parametrize(
    "asks", ['"stream_options":{"include_usage":true}', '"usage":{"include":true}']
)
def test_usage_that_the_browser_requested_stays(
    drive: Drive, fake: FakeWattfare, asks: str
) -> None:
    _RECORDED.clear()
    events = [*EVENTS, event({"choices": [], "usage": USAGE}), DONE]
    fake.script = lambda x: x.stream(*events)
    sent = b'{"model":"m","stream":true , %s}' % asks.encode()
    answer = drive(on_usage=_record_usage).request("POST", INFERENCE, JSON, sent)
    assert answer.body == b"".join(events)
    assert fake.next().body == sent
    assert len(_RECORDED) == 1


def test_usage_is_not_requested_without_on_usage(drive: Drive, fake: FakeWattfare) -> None:
    events = [word("one"), event({"choices": [], "usage": USAGE}), DONE]
    fake.script = lambda x: x.stream(*events)
    sent = b'{"model":"m","stream":true }'
    assert drive().request("POST", INFERENCE, JSON, sent).body == b"".join(events)
    assert fake.next().body == sent


def test_error_event_with_usage_is_not_removed(drive: Drive, fake: FakeWattfare) -> None:
    error = event({"error": {"code": "budget_exceeded", "message": "Full."}, "usage": USAGE})
    fake.script = lambda x: x.stream(word("one"), error)
    answer = drive(on_usage=_record_usage).request("POST", INFERENCE, JSON, body_of(stream=True))
    assert answer.body == word("one") + error


# -- the request id


@pytest.mark.parametrize("given_id", ["r-1", "A.b_c~d+/=:-9", "x" * 128])
@pytest.mark.parametrize("stream", [False, True])
def test_request_id_is_forwarded_to_the_service_and_back(
    drive: Drive, fake: FakeWattfare, caplog: Any, given_id: str, stream: bool
) -> None:
    caplog.set_level(logging.INFO, "wattfare_mw")
    headers = {**JSON, "x-request-id": given_id}
    answer = drive().request("POST", INFERENCE, headers, body_of(stream=stream))
    assert answer.headers["x-request-id"] == given_id
    assert fake.next().headers["x-request-id"] == given_id
    [record] = [record for record in caplog.records if record.name == "wattfare_mw"]
    assert f"request_id={given_id} " in record.getMessage()
    assert "outcome=complete" in record.getMessage()


@pytest.mark.parametrize("given_id", [None, "", "x" * 129, "a b", "ü", "a\x00", "a, b", "<script>"])
def test_invalid_request_id_is_replaced(
    drive: Drive, fake: FakeWattfare, given_id: str | None
) -> None:
    headers = JSON if given_id is None else {**JSON, "x-request-id": given_id}
    driver = drive()
    new = {driver.request("POST", INFERENCE, headers, body_of()).headers["x-request-id"]}
    new.add(driver.request("POST", INFERENCE, headers, body_of()).headers["x-request-id"])
    assert {exchange.headers["x-request-id"] for exchange in fake.exchanges} == new
    assert len(new) == 2
    assert all(one.isalnum() and len(one) == 32 for one in new)


def test_browser_input_adds_no_log_line(drive: Drive, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "wattfare_mw")
    forged = "m\nERROR wattfare_mw forged\x1b[31m\u2028"
    drive(resolve_user=lambda r: "u\nv").request("POST", INFERENCE, JSON, body_of(forged))
    [record] = [record for record in caplog.records if record.name == "wattfare_mw"]
    assert record.getMessage().isprintable()


# -- any bytes


@pytest.fixture(scope="module")
def both() -> Any:
    with run_fake_wattfare() as fake:
        drivers = {
            name: kind(
                resolve_user=lambda request: "user_1", secret_key=SECRET_KEY, base_url=fake.url
            )
            for name, kind in KINDS.items()
        }
        yield fake, drivers
        for driver in drivers.values():
            driver.close()
        assert not fake.failures


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@examples(60)
@given(
    up=st.dictionaries(st.text(), _JSON, max_size=5), down=st.binary(max_size=200), data=st.data()
)
def test_any_json_is_forwarded_unchanged(both: Any, up: Any, down: bytes, data: Any) -> None:
    fake, drivers = both
    body = json.dumps({**up, "model": "m"}, ensure_ascii=data.draw(st.booleans()), indent=1)
    if "\\ud" not in body and body.isascii() is False and not _encodes(body):
        return
    answer_body = json.dumps({"x": down.decode("latin-1")}).encode()
    fake.script = lambda exchange: exchange.answer(answer_body)
    for driver in drivers.values():
        fake.forget_exchanges()
        answer = driver.request("POST", INFERENCE, JSON, body.encode())
        if answer.status == 200:
            assert answer.body == answer_body
            assert fake.next().body == body.encode()
        else:  # a known field of another type
            assert answer.status == 400
            assert not fake.exchanges


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
