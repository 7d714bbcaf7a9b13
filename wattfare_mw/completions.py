"""Private: parses the answers of models, both whole answers and streams. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any, cast

import msgspec

from . import money, sse
from .errors import WattfareError, error_from_answer, wire_error
from .types import TokenUsage, decode, decode_raw, exact, fields_of


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call of the model. ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str
    type: str = "function"


_NULL = msgspec.Raw(b"null")


class Completion(msgspec.Struct, frozen=True):
    """A model's complete answer.

    Attributes:
        text: the text of the first choice. Empty if the model only called tools.
        tool_calls: the tool calls of the first choice.
        finish_reason: why the answer ended: ``"stop"``, ``"length"``, ``"tool_calls"``, ….
        usage: the tokens of the call. None if the provider does not report them.
        cost_usd: the billed cost, in USD. None if the service does not report it.
        raw: the received answer, with all its fields.
    """

    text: str
    model: str | None
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...]
    usage: TokenUsage | None
    cost_usd: Decimal | None
    raw: dict[str, Any]
    id: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a streamed answer.

    Attributes:
        text: the new text. It is often empty.
        tool_calls: the tool calls that this chunk completes. Incomplete tool calls are not in it.
        finish_reason: why the answer ended. Only the last chunk of the answer has it.
        usage: the tokens of the call. Only the chunk that reports them has it.
        cost_usd: the billed cost, in USD. Only the chunk that reports it has it.
        raw: the received chunk, with all its fields.
    """

    text: str
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...]
    usage: TokenUsage | None
    cost_usd: Decimal | None
    raw: dict[str, Any]


# -- the fields that are read; the others are only in `raw`


class _Metered(msgspec.Struct):
    usage: msgspec.Raw = _NULL
    x_groq: msgspec.Raw = _NULL
    choices: msgspec.Raw = _NULL


class _OfChoice(msgspec.Struct):
    usage: msgspec.Raw = _NULL


class Metering(msgspec.Struct, frozen=True):
    """The usage and the cost in an answer."""

    usage: TokenUsage | None = None
    cost_usd: Decimal | None = None


def metering(body: bytes) -> Metering:
    """The usage and the cost in a JSON body. An invalid value is ignored, because the answer was
    paid for and must not be lost.

    Raises:
        msgspec.DecodeError: it is not JSON.
    """
    return read_usage(usage_in(body))


def usage_in(body: bytes) -> bytes:
    """The JSON of the usage in a JSON body, for :func:`read_usage`.

    Raises:
        msgspec.DecodeError: it is not JSON.
    """
    try:
        found = decode(_Metered, body)
    except msgspec.ValidationError:
        return _NULL
    if found.usage != _NULL:
        return found.usage
    # Some providers report the usage elsewhere: Groq under its own name, Moonshot in a choice.
    with suppress(msgspec.ValidationError):
        if (usage := decode(_OfChoice, found.x_groq).usage) != _NULL:
            return usage
    with suppress(msgspec.ValidationError):
        for choice in decode(list[_OfChoice], found.choices):
            if choice.usage != _NULL:
                return choice.usage
    return _NULL


def read_usage(reported: bytes) -> Metering:
    """Read the result of :func:`usage_in`. An impossible value is ignored."""
    try:
        fields = _decode_usage(reported)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Metering()
    counts = [_count_in(fields, names) for names in _COUNTS]
    usage = None
    if any(count is not None for count in counts) or not _reports_tokens(fields):
        prompt, completion, total = (count or 0 for count in counts)
        usage = TokenUsage(prompt, completion, total or prompt + completion)
    return Metering(usage, _cost_in(fields.get("cost")))


def _any_number(digits: str) -> Decimal | None:
    with suppress(ValueError):
        return exact(digits)
    return None


_decode_usage = msgspec.json.Decoder(dict[str, Any], float_hook=_any_number).decode

#: The names of the three counts, in most APIs and in OpenAI's Responses API.
_COUNTS = (
    ("prompt_tokens", "input_tokens"),
    ("completion_tokens", "output_tokens"),
    ("total_tokens",),
)
#: A larger number of tokens is ignored as a mistake.
_MAX_TOKENS = 10**12


def _reports_tokens(fields: dict[str, Any]) -> bool:
    return any(fields.get(name) is not None for names in _COUNTS for name in names)


def _count_in(fields: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        number = _number(fields.get(name))
        if number is not None and number == int(number) and number <= _MAX_TOKENS:
            return int(number)
    return None


def _cost_in(cost: object) -> Decimal | None:
    if isinstance(cost, dict):  # Perplexity reports an object with parts and their total
        parts = cast("dict[str, Any]", cost)
        cost = parts.get("total_cost", parts.get("total"))
    return _number(cost)


def _number(value: object) -> Decimal | None:
    """A number from 0 to 10¹², also if it is written as text. None for any other value."""
    try:
        if isinstance(value, str) and len(value) <= _MAX_DIGITS:
            value = Decimal(value)
        return money.amount(value)
    except (ValueError, ArithmeticError):
        return None


_MAX_DIGITS = 100


def read_completion(status: int, body: bytes) -> Completion:
    """Read a complete answer. A field with an unexpected type is only in ``raw``.

    Raises:
        WattfareError: the body is an error, or not a completion.
    """
    if (error := _error_in_body(status, body)) is not None:
        raise error
    try:
        raw = decode_raw(body)
        choices = _objects(raw.get("choices"))
        if not choices:
            raise msgspec.ValidationError("no choices")
    except msgspec.MsgspecError as error:
        raise not_the_protocol(status, "a chat completion", error) from None
    reported = metering(body)
    choice = choices[0]
    message = fields_of(choice.get("message"))
    calls = ToolCalls()
    for part in _parts(message):
        calls.add(part)
    return Completion(
        text=_text(message),
        model=_name(raw.get("model")),
        finish_reason=_name(choice.get("finish_reason")),
        tool_calls=calls.finish(),
        usage=reported.usage,
        cost_usd=reported.cost_usd,
        raw=raw,
        id=_name(raw.get("id")),
    )


# -- one field at a time, so that an unexpected value does not affect the others


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects in a list. Some providers send a single object without a list."""
    if isinstance(value, dict):
        return [cast("dict[str, Any]", value)]
    if not isinstance(value, list):
        return []
    items = cast("list[Any]", value)
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


def _name(value: object) -> str | None:
    """A name, an id or a reason as text. Some providers send numbers. An empty text counts as
    missing."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def _index(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in _objects(content)]
    return "".join(text for text in texts if isinstance(text, str))


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    return _objects(message.get("tool_calls"))


def not_the_protocol(status: int, wanted: str, error: Exception | None = None) -> WattfareError:
    """The error for a successful answer that does not follow the protocol."""
    why = f": {error}" if error is not None else ""
    return WattfareError(
        f"The answer ({status}) is not {wanted}{why}. Check that this address belongs to a "
        "Wattfare service.",
        code="unknown",
        status=status,
    )


def _error_in_body(status: int, body: bytes) -> WattfareError | None:
    # Some providers report an error with status 200.
    if b'"error"' not in body or wire_error(body) is None:
        return None
    return error_from_answer(502, body)


class _OpenCall:
    """A tool call that may be incomplete."""

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id: str | None = None
        self.name: str | None = None
        self.type: str | None = None
        self.may_be_empty = True
        self._texts: list[str] = []
        self._size = 0
        self._last = ""  # the last part that is not blank
        self._value: str | None = None

    def take(self, id_: str | None, name: str | None, type_: str | None, arguments: object) -> None:
        self.id = self.id or id_
        self.name = self.name or name
        self.type = self.type or type_
        if isinstance(arguments, str):
            self._texts.append(arguments)
            self._size += len(arguments)
            self._last = arguments.rstrip() or self._last
        elif arguments is not None:  # an object, instead of JSON text
            self._value = msgspec.json.encode(arguments).decode()

    @property
    def arguments(self) -> str:
        text = "".join(self._texts)
        if text.startswith("{}{"):  # Bedrock and Gemini: openai/openai-agents-js#712
            text = text[2:]
        if self._value is None or (text.strip() and self._value in ("{}", "[]")):
            return text
        return self._value

    @property
    def has_all(self) -> bool:
        """True if the arguments are a complete object."""
        # This runs for each part of a call whose name is repeated, so it skips large arguments.
        if self._size > _MOST_LOOKED_AT or not (self._value or self._last.endswith("}")):
            return False
        try:
            return isinstance(msgspec.json.decode(self.arguments), dict)
        except (msgspec.MsgspecError, RecursionError):
            return False

    @property
    def is_one(self) -> bool:
        """True if this counts as a tool call."""
        return bool(self.arguments.strip() or (self.may_be_empty and (self.id or self.name)))

    def whole(self) -> ToolCall:
        return ToolCall(self.id or "", self.name or "", self.arguments, self.type or "function")


#: Arguments with more characters are not checked for completeness.
_MOST_LOOKED_AT = 2**14


class ToolCalls:
    """Combines the parts of tool calls that providers send.

    A new id starts a new call, even if its index is 0, null or absent. A part without an id
    continues the last call with the same index. If it has no index either, it continues the last
    call. If the provider sends no ids, a part with a name starts a new call if its name differs, or
    if the arguments so far are complete. ``null``, ``"null"`` as an id and ``""`` are ignored.
    """

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._of_index: dict[int, _OpenCall] = {}
        self._of_id: dict[str, _OpenCall] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, part: dict[str, Any]) -> None:
        """Add one item of ``tool_calls``: a whole call or a part."""
        function = fields_of(part.get("function"))
        index, id_ = _index(part.get("index")), _name(part.get("id"))
        if id_ == "null":  # Mistral's default
            id_ = None
        name, arguments = _name(function.get("name")), function.get("arguments")
        call = self._known(index, id_)
        if call is None or self._starts_new_call(call, id_, name, arguments):
            repeats = id_ is None and call is not None and call.name == name
            call = self._begin(index)
            call.may_be_empty = not repeats  # a repeated name alone is not a call
        call.take(id_, name, _name(part.get("type")), arguments)
        if id_ is not None:
            self._of_id[id_] = call

    def finish(self) -> tuple[ToolCall, ...]:
        """Return the calls so far in order, and start again without calls."""
        calls = [call for call in self._calls if call.is_one]
        calls.sort(key=lambda call: call.index or 0)
        self._calls = []
        self._of_index.clear()
        self._of_id.clear()
        return tuple(call.whole() for call in calls)

    def _known(self, index: int | None, id_: str | None) -> _OpenCall | None:
        if id_ is not None:
            call = self._of_id.get(id_)
            if call is not None and (index is None or call.index in (None, index)):
                return call
        last = self._calls[-1] if self._calls else None
        if index is None or (id_ is None and last is not None and last.index is None):
            return last
        return self._of_index.get(index)

    def _starts_new_call(
        self, call: _OpenCall, id_: str | None, name: str | None, arguments: object
    ) -> bool:
        if id_ is not None and call.id is not None:
            return id_ != call.id
        if name is None or call.name is None or call.id is not None:
            return False
        return name != call.name or call.has_all

    def _begin(self, index: int | None) -> _OpenCall:
        call = _OpenCall(index)
        self._calls.append(call)
        if index is not None:
            self._of_index[index] = call
        return call


class StreamReader:
    """Parses a streamed answer: bytes in, chunks out.

    Attributes:
        done: True if the answer is complete.
        text, finish_reason, tool_calls, usage, cost_usd, model: the answer so far.
    """

    def __init__(self) -> None:
        self._splitter = sse.Splitter()
        self._calls = ToolCalls()
        self._texts: list[str] = []
        self.done = False
        self.finish_reason: str | None = None
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.usage: TokenUsage | None = None
        self.cost_usd: Decimal | None = None
        self.model: str | None = None
        self.id: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yield the chunks that these bytes complete. Chunks before an error are always yielded
        before it is raised.

        Raises:
            WattfareError: the stream has an error event, or an invalid event.
        """
        try:
            block = self._splitter.feed(data)
        except sse.EventTooLargeError as error:
            raise _broken(str(error)) from None
        yield from self._read(block)
        if not self.done and self._splitter.ends:
            yield from self._read(self._splitter.finish())

    def end(self) -> Iterator[Chunk]:
        """Handle the end of the stream.

        Raises:
            WattfareError: ``upstream``; the answer is incomplete.
        """
        if not self.done:
            yield from self._read(self._splitter.finish())
        if not self.done:
            raise _broken("it is incomplete")

    def broken(self, error: Exception) -> WattfareError:
        """The error for a broken connection."""
        return _broken(str(error).rstrip("."))

    def _read(self, block: bytes) -> Iterator[Chunk]:
        for event in sse.events(block):
            if self.done:
                return
            if sse.is_done(event.data):
                self.done = True
                if self._calls:
                    yield Chunk("", None, self._finish_calls(), None, None, {})
            elif (chunk := self._chunk(event)) is not None:
                yield chunk

    def _chunk(self, event: sse.Event) -> Chunk | None:
        data = event.data
        if (error := sse.error_in(data)) is not None:
            raise error
        try:
            raw = decode_raw(data)
        except msgspec.ValidationError:
            return None  # some providers send `data: null` to keep the connection open
        except msgspec.MsgspecError as error:
            if sse.is_ping(event):
                return None
            raise _broken(f"an event is not a chat completion chunk: {error}") from None
        self.id = _name(raw.get("id")) or self.id
        self.model = _name(raw.get("model")) or self.model
        text, reason = "", None
        finished: tuple[ToolCall, ...] = ()
        for choice in _objects(raw.get("choices")):
            index = choice.get("index")
            if index and _index(index):
                continue  # only the first choice has attributes; all choices are in `raw`
            delta = fields_of(choice.get("delta"))
            text += _text(delta)
            if "tool_calls" in delta:
                for part in _parts(delta):
                    self._calls.add(part)
            reason = _name(choice.get("finish_reason"))
            if reason is not None:
                self.finish_reason = reason
                finished += self._finish_calls()
        if text:
            self._texts.append(text)
        reported = metering(data) if b'"usage"' in data else Metering()
        self.usage = reported.usage or self.usage
        self.cost_usd = reported.cost_usd if reported.cost_usd is not None else self.cost_usd
        return Chunk(text, reason, finished, reported.usage, reported.cost_usd, raw)

    def _finish_calls(self) -> tuple[ToolCall, ...]:
        finished = self._calls.finish()
        self.tool_calls += finished
        return finished


def _broken(why: str) -> WattfareError:
    return WattfareError(f"The stream broke off: {why}.", code="upstream", status=502)
