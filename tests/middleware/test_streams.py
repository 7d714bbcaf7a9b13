"""Streams through the middleware: each event is forwarded unchanged once it is complete, with any
line ends. Also what the client gets if the service breaks off."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drivers import INFERENCE, JSON, KINDS, Drive, Driver, Live, body_of
from support.examples import examples
from support.fake_wattfare import (
    DONE,
    SECRET_KEY,
    USAGE,
    Exchange,
    FakeWattfare,
    event,
    held_stream,
    run_fake_wattfare,
    word,
)

from wattfare_mw import TokenUsage

STREAM = body_of(stream=True)


def begin(driver: Driver, fake: FakeWattfare, **more: Any) -> tuple[Live, Exchange]:
    """Opens a stream of which only the head has arrived."""
    fake.script = held_stream
    live = driver.open("POST", INFERENCE, {**JSON, "x-request-id": "r-1"}, STREAM, **more)
    exchange = fake.next()
    live.wait_started()
    return live, exchange


def broken(data: bytes) -> bool:
    """True if this is the single event that reports a broken stream."""
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    error = json.loads(data[6:])
    assert set(error) == {"error"}
    assert set(error["error"]) == {"code", "message", "requestId"}
    return error["error"]["code"] == "upstream" and "broke off" in error["error"]["message"]


def test_each_event_is_forwarded_before_the_next_arrives(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(), fake)
    assert live.status == 200
    headers = dict(live.fields)
    assert headers == {
        "content-type": "text/event-stream",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
        "x-request-id": "r-1",
    }
    for one in (word("one "), b": OPENROUTER PROCESSING\n\n", word("zwei ü\u2028"), DONE):
        exchange.chunk(one)
        assert live.next() == one
    exchange.end()
    assert live.next() is None


def test_event_is_forwarded_once_complete(drive: Drive, fake: FakeWattfare) -> None:
    live, exchange = begin(drive(), fake)
    one, two = word("one"), word("two ü")
    exchange.chunk(one[:7])
    exchange.chunk(one[7:] + two[:-2])
    assert live.next() == one
    exchange.chunk(two[-2:-1])
    exchange.chunk(two[-1:] + DONE[:1])
    assert live.next() == two
    exchange.chunk(DONE[1:])
    assert live.next() == DONE
    exchange.end()
    assert live.next() is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_any_line_end_is_accepted(
    drive: Drive, fake: FakeWattfare, end: str, byte_by_byte: bool
) -> None:
    data = b"".join(
        [b": hi\n\n", word("one"), b"event: x\ndata: 1\ndata: 2\n\n", word("two"), DONE]
    )
    data = data.replace(b"\n", end.encode())
    chunks = [bytes([byte]) for byte in data] if byte_by_byte else [data]
    fake.script = lambda exchange: exchange.stream(*chunks)
    answer = drive().request("POST", INFERENCE, JSON, STREAM)
    assert answer.body == data


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_event_with_any_line_end_is_forwarded_at_once(
    drive: Drive, fake: FakeWattfare, end: str
) -> None:
    live, exchange = begin(drive(), fake)
    for text in ("one", "two", "three"):
        one = word(text).replace(b"\n", end.encode())
        exchange.chunk(one)
        assert live.next() == one
    exchange.chunk(DONE)
    exchange.end()
    assert live.rest() == DONE


@pytest.mark.parametrize(
    "half", [b"", b"data", b'data: {"choices": [', word("two")[:-1], b": comm"]
)
@pytest.mark.parametrize("how", ["reset", "hang_up", "end"])
def test_broken_stream_ends_with_an_error_event(
    drive: Drive, fake: FakeWattfare, half: bytes, how: str
) -> None:
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one") + half)
    assert live.next() == word("one")  # so that everything has arrived before the RST
    getattr(exchange, how)()
    last = live.next()
    assert last is not None
    assert broken(last)
    assert json.loads(last[6:])["error"]["requestId"] == "r-1"
    assert live.next() is None


@pytest.mark.parametrize(
    "nonsense", [b"zz\r\nwhat", b"-1\r\n", b"\r\n\r\n", b"5\r\nhellotoo", b"f" * 100_000]
)
def test_invalid_http_in_a_stream_ends_it_with_an_error_event(
    drive: Drive, fake: FakeWattfare, nonsense: bytes
) -> None:
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one"))
    assert live.next() == word("one")
    exchange.send(nonsense)
    exchange.hang_up()
    last = live.next()
    assert last is not None
    assert broken(last)
    assert live.next() is None


def test_stream_without_any_event_is_broken(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = lambda exchange: exchange.stream()
    assert broken(drive().request("POST", INFERENCE, JSON, STREAM).body)


@pytest.mark.parametrize(
    "last", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n", b"data: [DONE]\r"]
)
def test_last_empty_line_may_be_missing(drive: Drive, fake: FakeWattfare, last: bytes) -> None:
    fake.script = lambda exchange: exchange.stream(word("one"), last)
    answer = drive().request("POST", INFERENCE, JSON, STREAM)
    assert answer.body.startswith(word("one") + last)
    assert answer.body[len(word("one") + last) :].strip() == b""
    assert b"error" not in answer.body


@pytest.mark.parametrize("how", ["reset", "hang_up"])
def test_stream_may_break_off_after_its_end(drive: Drive, fake: FakeWattfare, how: str) -> None:
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one") + DONE)
    assert live.next() == word("one") + DONE
    getattr(exchange, how)()
    assert live.next() is None


@pytest.mark.parametrize("how", ["reset", "hang_up", "end"])
def test_error_event_of_the_service_is_the_last_event(
    drive: Drive, fake: FakeWattfare, how: str
) -> None:
    error = event({"error": {"code": "budget_exceeded", "message": "The cap is reached."}})
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one") + error)
    assert live.next() == word("one") + error
    getattr(exchange, how)()
    assert live.next() is None


def test_text_that_resembles_an_end_does_not_end_the_stream(
    drive: Drive, fake: FakeWattfare
) -> None:
    looks = word('"error" [DONE]') + event({"error": None, "choices": []}) + b": [DONE]\n\n"
    fake.script = lambda exchange: exchange.stream(looks)
    body = drive().request("POST", INFERENCE, JSON, STREAM).body
    assert body.startswith(looks)
    assert broken(body.removeprefix(looks))


def test_endless_event_is_cut_off(drive: Drive, fake: FakeWattfare, monkeypatch: Any) -> None:
    monkeypatch.setattr("wattfare_mw.sse.MAX_EVENT_BYTES", 10_000)
    monkeypatch.setattr("wattfare_mw.sse.MAX_EVENT_LINES", 10_000)
    live, exchange = begin(drive(), fake)
    exchange.chunk(word("one"))
    assert live.next() == word("one")
    exchange.chunk(b"data: " + b"x" * 10_000)
    last = live.next()
    assert last is not None
    assert broken(last)
    assert live.next() is None
    exchange.wait_gone()


@pytest.mark.parametrize("stream", [None, False, True])
def test_type_of_the_answer_counts_and_not_that_of_the_request(
    drive: Drive, fake: FakeWattfare, stream: bool | None
) -> None:
    fake.script = lambda x: x.stream(
        word("one"), DONE, content_type="Text/Event-Stream; charset=utf-8"
    )
    answer = drive().request("POST", INFERENCE, JSON, body_of(stream=stream))
    assert answer.body == word("one") + DONE
    assert answer.headers["content-type"] == "Text/Event-Stream; charset=utf-8"
    assert "content-length" not in answer.headers


def test_outcome_is_reported(drive: Drive, fake: FakeWattfare, caplog: Any) -> None:
    caplog.set_level("INFO", "wattfare_mw")
    reports: list[Any] = []
    over = threading.Event()

    def on_usage(*args: Any) -> None:
        reports.append(args)
        over.set()

    driver = drive(on_usage=on_usage)
    for last, outcome in (
        (DONE, "complete"),
        (b"data: half", "broken"),
        (event({"error": {"code": "upstream", "message": "x"}}), "broken"),
    ):
        over.clear()
        usage = word("two", usage=USAGE)
        fake.script = lambda x, last=last, usage=usage: x.stream(word("one"), usage, last)
        assert driver.request("POST", INFERENCE, JSON, STREAM).status == 200
        assert over.wait(5)
        assert reports.pop()[2] == TokenUsage(5, 3, 8)
        line = [r.getMessage() for r in caplog.records if r.getMessage().startswith("inference")][
            -1
        ]
        assert f"outcome={outcome}" in line
        assert "status=200" in line
        assert "tokens=8" in line


@pytest.mark.parametrize("count", [100])
def test_a_hundred_concurrent_streams(drive: Drive, fake: FakeWattfare, count: int) -> None:
    """No stream gets bytes of another, and all run at the same time."""
    driver = drive(resolve_user=lambda request: request.headers["x-me"])
    fake.script = held_stream
    lives = [
        driver.open("POST", INFERENCE, {**JSON, "x-me": f"user {number}"}, STREAM)
        for number in range(count)
    ]
    exchanges = {exchange.user: exchange for exchange in (fake.next() for _ in range(count))}
    for round_number in range(3):
        for number in range(count):
            exchanges[f"user {number}"].chunk(word(f"{number}:{round_number}"))
        for number, live in enumerate(lives):
            assert live.next() == word(f"{number}:{round_number}")
    for exchange in exchanges.values():
        exchange.chunk(DONE)
        exchange.end()
    assert {live.rest() for live in lives} == {DONE}


# -- any stream, cut at any place

_LINE = st.one_of(
    st.sampled_from([b"data: [DONE]", b": ping", b"data: {}", b"event: x", b"data", b"\xff\xfe"]),
    st.sampled_from([word("x")[:-2], event({"choices": [], "usage": USAGE})[:-2]]),
    st.sampled_from([event({"error": {"code": "upstream", "message": "m"}})[:-2]]),
)
_STREAM = st.lists(st.tuples(_LINE, st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b""])))


@pytest.fixture(scope="module")
def both() -> Any:
    reports: list[Any] = []
    with run_fake_wattfare() as fake, pytest.MonkeyPatch.context() as patch:
        # However many comments there are.
        patch.setattr("wattfare_mw.middleware.relay.COMMENT_SECONDS", 0)
        drivers = {
            name: kind(
                resolve_user=lambda request: "user_1",
                secret_key=SECRET_KEY,
                base_url=fake.url,
            )
            for name, kind in KINDS.items()
        }
        yield fake, drivers, reports
        for driver in drivers.values():
            driver.close()
        assert not fake.failures


@examples(80)
@given(lines=_STREAM, cuts=st.lists(st.integers(1, 40), max_size=6), clean=st.booleans())
def test_any_stream_cut_at_any_place(both: Any, lines: Any, cuts: list[int], clean: bool) -> None:
    """The output is a prefix of the input, up to the end of an event. It may be followed by one
    error event. ASGI and WSGI agree."""
    fake, drivers, _ = both
    data = b"".join(line + end for line, end in lines)
    chunks, start = [], 0
    for cut in cuts:
        chunks.append(data[start : start + cut])
        start += cut
    chunks.append(data[start:])

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for chunk in chunks:
            exchange.chunk(chunk)
        if clean:
            exchange.end()
        else:
            exchange.hang_up()

    fake.script = script
    bodies = set()
    for driver in drivers.values():
        fake.forget_exchanges()
        answer = driver.request("POST", INFERENCE, {**JSON, "x-request-id": "r-1"}, STREAM)
        assert answer.status == 200
        bodies.add(answer.body)
        passed = answer.body
        if passed.rstrip(b"\r\n") == data.rstrip(b"\r\n") and passed.startswith(data):
            # Complete, or reported as broken by the service itself.
            assert b"[DONE]" in passed or b'"error"' in passed
            continue
        cut = passed.rfind(b"data: ", 0, len(passed))
        if broken_event(passed[cut:]):
            passed = passed[:cut]
        assert data.startswith(passed)
        assert not passed or passed[-1:] in (b"\n", b"\r")
    assert len(bodies) == 1


def broken_event(data: bytes) -> bool:
    return b"broke off" in data and broken(data)
