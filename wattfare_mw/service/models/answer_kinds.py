"""Converts an answer of the wrong kind, because it was paid for: a whole answer to a call with
``stream``, and a stream as the answer to a call without it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from ... import sse
from ...completions import ToolCalls
from ...types import encode, fields_of
from ..chat.meter import MAX_CHOICES
from . import error_shapes, upstream_json

#: How a stream starts. Some servers do not name its content type: nearai/private-ml-sdk#20.
_STREAM_START = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*(?:data|event|id|retry)?:")
#: Comments of a stream before a whole answer.
_COMMENTS = re.compile(rb"[\r\n]*+(?::[^\r\n]*+[\r\n]++)++(?=\{)")
#: The fields of a piece of a message that are repeated and not continued.
_REPEATED = frozenset({"role", "id", "type", "name", "format", "index"})


def is_stream(start: bytes) -> bool:
    """True if an answer that starts with these bytes is an event stream."""
    return _STREAM_START.match(start) is not None


def is_framed(body: bytes) -> bool:
    """True if a whole answer is a stream, or ends as one. JSON never does."""
    return is_stream(body[:100]) or body[-100:].rstrip().endswith(sse.DONE)


def has_end(block: bytes) -> bool:
    """True if these events of a stream have its end or an error. Some servers leave the connection
    open after it."""
    return any(map(_is_end, sse.events(block)))


def _is_end(event: sse.Event) -> bool:
    if event.type == "error" or sse.is_done(event.data):
        return True
    try:
        decoded = upstream_json.decode(event.data)
    except ValueError:
        return event.data.lstrip().startswith(b"{")  # it is broken, and not a ping
    return error_shapes.in_success(decoded) is not None


def as_stream(body: bytes) -> bytes | None:
    """A whole answer as a stream of one chunk; None if it is not a whole answer."""
    try:
        answer = fields_of(upstream_json.decode(body))
    except ValueError:
        return None
    choices = [_as_chunk(choice) for choice in _objects(answer.get("choices"))]
    if not choices:
        return None
    chunk = {**answer, "object": "chat.completion.chunk", "choices": choices}
    return sse.write(encode(chunk)) + sse.write(sse.DONE)


def _as_chunk(choice: dict[str, Any]) -> dict[str, Any]:
    delta = fields_of(choice.get("message") or choice.get("delta"))
    calls = _objects(delta.get("tool_calls"))
    if calls:
        delta = {**delta, "tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]}
    rest = {name: value for name, value in choice.items() if name != "message"}
    return {**rest, "delta": delta}


def as_whole(body: bytes) -> bytes:
    """A stream as a whole answer. If it breaks off, the answer also has an error. Any other body is
    returned as it is.

    Raises:
        WattfareError: ``upstream``; an event is too large to decode, or the lists of all events
            have more than :data:`.upstream_json.MAX_ELEMENTS` values.
    """
    comments = _COMMENTS.match(body)
    if comments is not None:
        body = body[comments.end() :]
    if not is_stream(body[:100]):
        # The end of a stream after a whole answer: decolua/9router#3492.
        return body.rstrip().removesuffix(sse.DONE).rstrip().removesuffix(b"data:")
    whole: dict[str, Any] = {}
    choices: dict[int, _Choice] = {}
    done = False
    listed = 0
    for event in _events(body):
        done = sse.is_done(event.data)
        if done:
            break
        try:
            fields = fields_of(upstream_json.decode(event.data))
        except ValueError:
            continue
        if event.type == "error":
            fields = fields if "error" in fields else {"error": fields}
        has_lists = False
        for place, choice in enumerate(_objects(fields.get("choices"))):
            index = choice.get("index")
            number = index if type(index) is int else place
            # An upstream could choose large integers with colliding hashes.
            if 0 <= number < MAX_CHOICES:
                has_lists |= choices.setdefault(number, _Choice()).add(choice)
        if has_lists:
            # Decoded values take far more memory than their text. These marks are at least as many
            # as the values.
            listed += sum(map(event.data.count, (b",", b"[", b"{")))
            if listed > upstream_json.MAX_ELEMENTS:
                raise upstream_json.too_large()
        whole |= {name: value for name, value in fields.items() if value is not None}
    whole["object"] = "chat.completion"
    whole["choices"] = [{"index": n, **choices[n].whole()} for n in sorted(choices)]
    if not done and not all(each.has_ended for each in choices.values()):
        whole.setdefault("error", {"message": "The upstream's answer broke off."})
    return encode(whole)


def _events(body: bytes) -> Iterator[sse.Event]:
    for raw in sse.split(body.rstrip(b"\r\n") + b"\n\n"):
        if raw.count(b"\n") + raw.count(b"\r") > sse.MAX_EVENT_LINES:
            raise upstream_json.too_large()
        yield from sse.events(raw)


class _Choice:
    """One choice of a stream."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._pieces: dict[str, list[str]] = {}
        self._message: dict[str, Any] = {}
        self._calls = ToolCalls()
        self._logprobs: list[Any] = []

    def add(self, choice: dict[str, Any]) -> bool:
        """Add a chunk's part of this choice. Returns True if it has lists, which are kept."""
        has_lists = False
        for name, value in choice.items():
            if name == "logprobs":
                tokens = _objects(fields_of(value).get("content"))
                has_lists = has_lists or bool(tokens)
                self._logprobs += tokens
            elif value is not None and name not in ("index", "delta", "message"):
                self._fields[name] = value
        for name, value in fields_of(choice.get("delta") or choice.get("message")).items():
            if name == "tool_calls":
                for call in _objects(value):
                    self._calls.add(call)
            elif isinstance(value, str) and name not in _REPEATED:
                self._pieces.setdefault(name, []).append(value)
            elif isinstance(value, list):
                has_lists = True
                known = self._message.setdefault(name, [])
                if isinstance(known, list):
                    cast("list[Any]", known).extend(cast("list[Any]", value))
            elif value is not None:
                self._message[name] = value
        return has_lists

    @property
    def has_ended(self) -> bool:
        return bool(self._fields.get("finish_reason"))

    def whole(self) -> dict[str, Any]:
        texts = {name: "".join(pieces) for name, pieces in self._pieces.items()}
        message = {"role": "assistant", "content": None, **self._message, **texts}
        calls = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in self._calls.finish()
        ]
        if calls:
            message["tool_calls"] = calls
        logprobs = {"logprobs": {"content": self._logprobs}} if self._logprobs else {}
        return {"finish_reason": None, **self._fields, **logprobs, "message": message}


def _objects(value: object) -> list[dict[str, Any]]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [fields_of(item) for item in items]
