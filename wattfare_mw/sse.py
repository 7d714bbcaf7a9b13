"""Private: reads and writes event streams as bytes.

It follows the WHATWG's "Server-sent events". A line ends with LF, CRLF or CR (but not with U+2028).
An empty line ends an event. An incomplete event at the end is ignored, except by
:meth:`Splitter.finish`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from .errors import STATUS_BY_CODE, WattfareError, make_error, wire_error

CONTENT_TYPE = "text/event-stream"
#: The data of the last event of a complete answer.
DONE = b"[DONE]"
#: The maximum size of an event, in bytes.
MAX_EVENT_BYTES = 32 * 2**20
#: The maximum number of lines in an event. A line takes more memory than its bytes.
MAX_EVENT_LINES = 200_000

# A line end and the empty lines after it. The atomic group does not split a CRLF.
_EVENT_END = re.compile(rb"(?>\r\n|\r|\n)[\r\n]+")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_LF = 0x0A
_DONE_LINE = re.compile(rb"data: ?\[DONE\][ \r\n]*")
_DONE_BYTES = 20
_COMMENTS_ONLY = re.compile(rb"[\r\n]*(?::[^\r\n]*[\r\n]+)+")


class EventTooLargeError(ValueError):
    """An event exceeds :data:`MAX_EVENT_BYTES` or :data:`MAX_EVENT_LINES`."""


class Splitter:
    """Splits a stream into complete events and an incomplete rest. A chunk may start and end
    anywhere in an event.

    ``feed`` returns the bytes of all complete events unchanged, and keeps the rest. Usually, a
    chunk ends with an event, and is returned without a copy.
    """

    __slots__ = ("_counted", "_line_end", "_line_ends", "_parts", "_size")

    def __init__(self) -> None:
        # The pieces of the incomplete event. If each chunk joined them, the time would grow with
        # the square of the event's length.
        self._parts: list[bytes] = []
        self._size = 0
        # How many pieces were searched for line ends, and how many line ends they have.
        self._line_ends = self._counted = 0
        self._line_end = b""

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk. Returns the bytes of the events that are now complete; empty if there are
        none.

        Raises:
            EventTooLargeError: an event is too large.
        """
        if not self._line_end and not self._parts and chunk.endswith(b"\n\n"):
            return chunk
        seen = len(self._line_end)
        data = self._line_end + chunk if seen else chunk
        cut = _last_event_end(data, under_way=bool(self._parts))
        if cut:
            whole = b"".join((*self._parts, chunk[: cut - seen])) if self._parts else data[:cut]
            self._parts, self._size, self._counted, chunk = [], 0, 0, data[cut:]
        else:
            whole = b""
        if chunk:
            self._parts.append(chunk)
            self._size += len(chunk)
            if self._size > MAX_EVENT_LINES:  # an event has at most as many lines as bytes
                self._check_size()
        ends_line = len(data) > cut and data[-1] in b"\r\n"
        self._line_end = data[-1:] if ends_line else b""
        return whole

    def _check_size(self) -> None:
        if not self._counted:
            self._line_ends = 0
        for piece in self._parts[self._counted :]:
            self._line_ends += piece.count(b"\n") + piece.count(b"\r")
        self._counted = len(self._parts)
        if self._line_ends > MAX_EVENT_LINES:
            raise EventTooLargeError(f"an event of more than {MAX_EVENT_LINES:,} lines")
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLargeError(f"an event of more than {MAX_EVENT_BYTES:,} bytes")

    @property
    def rest(self) -> bytes:
        """The incomplete event at the end."""
        return b"".join(self._parts)

    @property
    def ends(self) -> bool:
        """True if the rest is the last event of an answer. Some servers leave out the empty line
        after it, and may keep the connection open."""
        return 0 < self._size <= _DONE_BYTES and _DONE_LINE.fullmatch(self.rest) is not None

    def finish(self) -> bytes:
        """Handle the end of the stream. Returns the rest as a complete event, because a server may
        leave out the empty line after the last event."""
        rest, self._parts, self._line_end = self.rest, [], b""
        self._size = self._counted = 0
        return rest.rstrip(b"\r\n") + b"\n\n" if rest else b""


def _last_event_end(data: bytes, *, under_way: bool) -> int:
    """The end of the last complete event in ``data``, including the empty lines after it; 0 if
    there is no complete event. ``under_way``: True if ``data`` starts inside an event."""
    if data.endswith(b"\n\n"):
        return len(data)
    # Between two events, an empty line or the LF of a CRLF belongs to the previous event.
    end = 0 if under_way else len(data) - len(data.lstrip(b"\r\n"))
    if data.find(b"\r") < 0:  # most servers use only LF
        last = data.rfind(b"\n\n")
        return end if last < 0 else last + 2
    # Search backwards for LF LF and CRLF CRLF, the two usual ends of an event. Only an unusual end
    # can come after them, so the slower pattern searches only the rest.
    position = max(data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n"), end)
    for match in _EVENT_END.finditer(data, position):
        end = match.end()
    return end


def split(block: bytes) -> Iterator[bytes]:
    """The events in a block of complete events, each as bytes."""
    start = 0
    for match in _EVENT_END.finditer(block):
        yield block[start : match.end()]
        start = match.end()


def last_event(block: bytes) -> int:
    """The start of the last event in a block of complete events."""
    if b"\r" in block:
        *_, last = split(block)
        return len(block) - len(last)
    before = block.rfind(b"\n\n", 0, len(block.rstrip(b"\n")))
    return before + 2 if before >= 0 else 0


def holding(block: bytes, *marks: bytes) -> Iterator[tuple[int, int]]:
    """The start and the end of each event that contains one of ``marks``, in a block of complete
    events. A mark does not span lines. Other events are not parsed."""
    if b"\r" in block:  # an event can end in several ways, so only `split` finds its start
        end = 0
        for raw in split(block):
            start, end = end, end + len(raw)
            if any(mark in raw for mark in marks):
                yield start, end
        return
    end = 0
    # Search for each mark only once: the search for a missing mark goes to the end of the block.
    ahead = [block.find(mark) for mark in marks]
    while (found := min((place for place in ahead if place >= 0), default=-1)) >= 0:
        before = block.rfind(b"\n\n", end, found)
        start = end if before < 0 else before + 2
        ending = block.find(b"\n\n", found)
        end = len(block) if ending < 0 else ending + 2
        while block[end : end + 1] == b"\n":
            end += 1
        yield start, end
        # A regular expression for all marks would take a hundred times as long.
        for number, place in enumerate(ahead):
            if 0 <= place < end:
                ahead[number] = block.find(marks[number], end)


class Event(msgspec.Struct, frozen=True):
    """An event. ``data`` is UTF-8."""

    data: bytes
    type: str = "message"


def lone_data(block: bytes) -> bytes | None:
    """The data of a block with one event of one line, which is the usual case. None for any other
    block."""
    # This runs for each event of a stream. `find` is faster than `in`, which first checks if the
    # searched value is an int. A subscript is faster than `endswith`.
    end = len(block) - 2
    if block.startswith(b"data: ") and block.find(b"\n") == end and block[-1] == _LF:
        return block[6:end] if block.find(b"\r") < 0 else None
    return None


def data_lines(block: bytes) -> list[bytes] | None:
    """The data of each event of a block, if every event is one line ``data: …``. None for any other
    block."""
    if b"\r" in block or not block.endswith(b"\n\n"):
        return None
    lines = block[:-2].split(b"\n\n")
    for line in lines:
        if not line.startswith(b"data: ") or b"\n" in line:
            return None
    return [line[6:] for line in lines]


def events(block: bytes) -> Iterator[Event]:
    """The events in a block of complete events. Comments, and events without data, are left out."""
    lone = lone_data(block)
    if lone is not None:
        yield Event(lone)
        return
    data: list[bytes] = []
    kind = "message"
    for line in _LINE_END.split(block):
        if line.startswith(_BOM):
            line = line[3:]
        if not line:
            if data:
                yield Event(b"\n".join(data), kind)
            data, kind = [], "message"
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            kind = value.decode("utf-8", "replace")


def may_hold_comments(block: bytes) -> bool:
    """True if a block of complete events may have a comment."""
    return block.startswith(b":") or block.find(b"\n:") >= 0 or block.find(b"\r:") >= 0


def is_comment(event: bytes) -> bool:
    """True if a complete event has only comments."""
    return _COMMENTS_ONLY.fullmatch(event) is not None


def write(data: bytes) -> bytes:
    """An event with this data. The data must not contain a line end. Compact JSON never does."""
    return b"data: " + data + b"\n\n"


def write_error(error: WattfareError, request_id: str) -> bytes:
    """The event that ends an incomplete stream with an error.

    AI libraries raise an error with the data of this event and without the response. So the event
    also has what the headers of an error have: the request id, and the time to wait.
    """
    wire = error.to_wire()
    wire["error"]["requestId"] = request_id
    if error.retry_after is not None:
        wire["error"]["retryAfter"] = error.retry_after
    return write(msgspec.json.encode(wire))


def is_done(data: bytes) -> bool:
    """True if an event with this data ends a complete answer."""
    return data.strip() == DONE


def is_ping(event: Event) -> bool:
    """True if an event only keeps the connection open. Its data is not always JSON."""
    return not event.data.strip() or event.type in ("ping", "heartbeat", "keepalive", "keep-alive")


def error_in(data: bytes) -> WattfareError | None:
    """The error in an event's data, or None if it is not an error."""
    if b'"error"' not in data:
        return None
    error = wire_error(data)
    if error is None:
        return None
    # An event has no status, so the error gets the default status of its code. An error without a
    # code comes from the upstream.
    code = error.code or "upstream"
    return make_error(
        code,
        error.message,
        status=STATUS_BY_CODE.get(code, 502),
        **error.details(),
    )
