"""Event streams: compared with an independent reader, for any bytes and any chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wattfare_mw import WattfareError, sse
from wattfare_mw.errors import STATUS_BY_CODE

BOM = b"\xef\xbb\xbf"


class Reference:
    """The WHATWG's rules as a state machine, byte by byte, without searching or splitting.

    ``end`` is where the last complete event in ``data`` ends, with all empty lines after it.
    """

    def __init__(self, data: bytes) -> None:
        self.events: list[tuple[bytes, str]] = []
        self.end = 0
        fields: list[tuple[bytes, bytes]] = []
        line = bytearray()
        at = 0
        while at < len(data):
            byte = data[at]
            at += 1
            if byte not in b"\r\n":
                line.append(byte)
                continue
            if byte == 0x0D and data[at : at + 1] == b"\n":
                at += 1
            if line:
                name, _, value = bytes(line).partition(b":")
                fields.append((name, value[1:] if value[:1] == b" " else value))
                line.clear()
            else:
                self._dispatch(fields)
                fields.clear()
                self.end = at

    def _dispatch(self, fields: list[tuple[bytes, bytes]]) -> None:
        kind = "message"
        data: bytes | None = None
        for name, value in fields:
            if name == b"event":
                kind = value.decode("utf-8", "replace")
            elif name == b"data":
                data = value if data is None else data + b"\n" + value
        if data is not None:
            self.events.append((data, kind))


#: Bytes that make up events, above all line ends in every mixture.
PIECES = st.sampled_from(
    [
        b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r", b"\r\n\n", b"\n\r\n",
        b"data: x", b"data:", b"data", b"data:  two", b": comment", b":", b"event: error",
        b"event:", b"id: 7", b"retry: 3", b"unknown: field", b"data: {\"a\":\"\xe2\x80\xa8\"}",
        "data: €🙂\u2028\u2029\x85".encode(), b"\x0b\x0c\x1c\x85", b"\xff\xfe", b"data: [DONE]",
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join)


def cuts(data: bytes, places: list[int]) -> Iterator[bytes]:
    """``data`` in chunks, cut at these positions."""
    last = 0
    for place in sorted({place % (len(data) + 1) for place in places}):
        yield data[last:place]
        last = place
    yield data[last:]


PLACES = st.lists(st.integers(0, 10_000), max_size=40)


def without_bom_inside(data: bytes) -> bytes:
    return data.replace(BOM, b"")  # it has a meaning only at the start


@given(STREAMS, PLACES)
@example(b"data: x\r\n\r\ndata: y", [10])
@example(b"data: x\r\r\ndata: y\r\n\r\n", [8, 9])
@example(b"data: x\r\n\r\n", [8, 9, 10])
@example(b"\r\n\r\ndata: x\n\n\n\n", [1, 3])
@example(b"data: x\n\r\n", [8, 9])
@example(b"\n", [])
def test_output_is_the_input_up_to_the_last_complete_event(data: bytes, places: list[int]) -> None:
    expected = Reference(data)
    splitter = sse.Splitter()
    out: list[bytes] = []
    so_far = b""
    for chunk in cuts(data, places):
        so_far += chunk
        out.append(splitter.feed(chunk))
        passed = b"".join(out)
        # At any moment, every complete event is out, and no incomplete one.
        assert passed == so_far[: len(passed)]
        assert len(passed) == Reference(so_far).end
        assert passed + splitter.rest == so_far
    assert b"".join(out) == data[: expected.end]


@given(STREAMS.map(without_bom_inside), PLACES)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(30)))
@example("data: €\u2028\n\n".encode(), list(range(30)))
def test_events_are_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    expected = Reference(data)
    splitter = sse.Splitter()
    found: list[tuple[bytes, str]] = []
    for chunk in cuts(data, places):
        found.extend((event.data, event.type) for event in sse.events(splitter.feed(chunk)))
    assert found == expected.events


@given(STREAMS)
def test_split_returns_the_bytes_of_each_event(data: bytes) -> None:
    block = data[: Reference(data).end]
    parts = list(sse.split(block))
    assert b"".join(parts) == block.lstrip(b"\r\n") or b"".join(parts) == block
    events = [[(event.data, event.type) for event in sse.events(part)] for part in parts]
    assert all(len(found) <= 1 for found in events)
    assert list(chain(*events)) == [(event.data, event.type) for event in sse.events(block)]


@given(STREAMS)
@example(b"data: a\n\ndata: b\n\n\n\n")
def test_start_of_the_last_event(data: bytes) -> None:
    block = sse.Splitter().feed(data)
    parts = list(sse.split(block))
    assume(parts)
    assert block[sse.last_event(block) :] == parts[-1]


def test_byte_order_mark_at_the_start_is_not_data() -> None:
    [event] = sse.events(BOM + b"data: x\n\n")
    assert event.data == b"x"


def test_complete_chunk_is_returned_as_the_same_object() -> None:
    splitter = sse.Splitter()
    chunk = b"data: x\n\n"
    assert splitter.feed(chunk) is chunk
    assert splitter.feed(b"") == b""
    assert splitter.rest == b""


def test_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    monkeypatch.setattr(sse, "MAX_EVENT_LINES", 100)
    splitter = sse.Splitter()
    whole = b"data: " + b"x" * 90 + b"\n\n"
    for _ in range(5):
        assert splitter.feed(whole * 3) == whole * 3  # many complete events are fine
        assert splitter.feed(whole[:50]) == b""
        assert splitter.feed(whole[50:]) == whole
    assert splitter.feed(b"x" * 100) == b""
    with pytest.raises(sse.EventTooLargeError):
        splitter.feed(b"x")


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
def test_event_of_endless_lines_is_refused(
    monkeypatch: pytest.MonkeyPatch, line_end: bytes
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_LINES", 10)
    splitter = sse.Splitter()
    whole = (b"data: x" + line_end) * 8 + line_end
    for _ in range(5):  # an event that has ended does not count
        assert splitter.feed(whole[:-10]) == b""
        assert splitter.feed(whole[-10:]) == whole
    for _ in range(10):
        assert splitter.feed(b"data: x" + line_end) == b""
    with pytest.raises(sse.EventTooLargeError, match="10 lines"):
        splitter.feed(b"data: x" + line_end)


@given(st.text())
def test_written_event_is_read(text: str) -> None:
    data = json.dumps({"x": text}, ensure_ascii=False).encode("utf-8", "replace")
    [event] = sse.events(sse.write(data))
    assert event == sse.Event(data)


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] ", b"[DONE]\n"])
def test_done_is_recognized(data: bytes) -> None:
    assert sse.is_done(data)


@pytest.mark.parametrize("data", [b"", b"[done]", b'"[DONE]"', b'{"x": "[DONE]"}', b"[DONE] ?"])
def test_other_events_are_not_done(data: bytes) -> None:
    assert not sse.is_done(data)


@pytest.mark.parametrize("code", [*STATUS_BY_CODE, "something_new"])
def test_error_event_is_written_and_read(code: str) -> None:
    error = WattfareError("Because of “this”\u2028.", code=code, retry_after=2.5)
    block = sse.write_error(error, "r-1")
    assert block.count(b"\n") == 2
    [event] = sse.events(block)
    found = sse.error_in(event.data)
    assert found is not None
    assert found.code == (code if code in STATUS_BY_CODE else "upstream")
    assert found.message.startswith(error.message)
    assert found.status == STATUS_BY_CODE.get(code, 502)
    assert (found.request_id, found.retry_after) == ("r-1", 2.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("requestId", value) for value in (None, 7, "", "a\nb", "r" * 129, ["r"])],
        *[("retryAfter", value) for value in (None, True, "7", -1, [7])],
    ],
)
def test_invalid_fields_of_an_error_event_are_ignored(field: str, value: object) -> None:
    error = {"code": "rate_limited", "message": "Because.", field: value}
    found = sse.error_in(json.dumps({"error": error}).encode())
    assert found is not None
    assert (found.request_id, found.retry_after) == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"choices": []}',
        b'{"choices": [], "error": null}',
        b'{"choices": [{"delta": {"content": "\\"error\\""}}]}',
        b'{"error": {}}',
        b'{"error": {"code": null, "message": ""}}',
        b'{"error": ""}',
        b'"error"',
        b'{"error": {"code": "auth"',
        b'{"error": {"code": "\xff"}}',
    ],
)
def test_other_events_are_not_errors(data: bytes) -> None:
    assert sse.error_in(data) is None


@given(
    # With line ends of every kind, and with only those that servers send.
    st.text("ab\n\r", max_size=60).map(str.encode)
    | st.lists(st.sampled_from([b"ab", b"b", b"\n", b"\n\n"]), max_size=20).map(b"".join)
)
@example(b"b\n\nab\n\n")
def test_find_events_with_one_of_two_marks(data: bytes) -> None:
    """The result equals a search of each event."""
    block = sse.Splitter().feed(data)
    places: list[tuple[int, int]] = []
    end = 0
    for raw in sse.split(block):
        start, end = end, end + len(raw)
        if b"ab" in raw or b"bb" in raw:
            places.append((start, end))
    assert list(sse.holding(block, b"ab", b"bb")) == places
