"""What a model answers: whole, or in the chunks of a stream, read without any I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec

from . import money, sse
from .errors import WattfareError, error_from_answer, wire_error
from .types import TokenUsage, decode, decode_raw


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool that the model asks for; ``arguments`` is the JSON text it wrote."""

    id: str
    name: str
    arguments: str
    type: str = "function"


class Completion(msgspec.Struct, frozen=True):
    """A model's whole answer.

    Attributes:
        text: of the first choice; empty where the model only called tools.
        tool_calls: of the first choice.
        finish_reason: why it ended there: ``"stop"``, ``"length"``, ``"tool_calls"``, ….
        usage: the tokens used, where the provider tells.
        cost_usd: what the user was billed, in USD, where the service tells.
        raw: the answer as it came, with the fields that have no name here.
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
        text: what is new in it; often empty.
        tool_calls: those that are complete with it; never a part of one.
        finish_reason: on the last chunk that holds any of the answer.
        usage: the tokens used, on the chunk that tells.
        cost_usd: what the user was billed, in USD, likewise.
        raw: the chunk as it came.
    """

    text: str
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...]
    usage: TokenUsage | None
    cost_usd: Decimal | None
    raw: dict[str, Any]


# -- the wire, as far as it is read; everything else stays in `raw`


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None
    index: int = 0


class _Body(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None


class _TokensUsed(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Metered(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Cost(msgspec.Struct):
    cost: money.Usd | None = None


class Metering(msgspec.Struct, frozen=True):
    """What an answer says of its own cost."""

    usage: TokenUsage | None = None
    cost_usd: Decimal | None = None


def metering(body: bytes) -> Metering:
    """The usage and the cost that a JSON body tells. Nonsense there is no reason to lose an
    answer that was paid for: it counts as not reported.

    Raises:
        msgspec.DecodeError: it is not JSON at all.
    """
    return read_usage(usage_in(body))


def usage_in(body: bytes) -> bytes:
    """The JSON of what a JSON body tells of its usage, to be read when somebody wants to know.

    Raises:
        msgspec.DecodeError: it is not JSON at all.
    """
    try:
        return decode(_Metered, body).usage
    except msgspec.ValidationError:
        return b"null"


def read_usage(reported: bytes) -> Metering:
    """What :func:`usage_in` has found, read."""
    usage = cost = None
    with suppress(msgspec.ValidationError):
        used = decode(_TokensUsed, reported)
        usage = TokenUsage(
            used.prompt_tokens,
            used.completion_tokens,
            used.total_tokens or used.prompt_tokens + used.completion_tokens,
        )
    with suppress(msgspec.ValidationError):
        cost = decode(_Cost, reported).cost
    return Metering(usage, cost)


def read_completion(status: int, body: bytes) -> Completion:
    """A whole answer.

    Raises:
        WattfareError: the body is an error after all, or no completion.
    """
    if (error := _error_in_body(status, body)) is not None:
        raise error
    try:
        wire = decode(_Body, body)
        if not wire.choices:
            raise msgspec.ValidationError("no choices")
        raw = decode_raw(body)
    except msgspec.MsgspecError as error:
        raise not_the_protocol(status, "a chat completion", error) from None
    reported = metering(body)
    choice = wire.choices[0]
    return Completion(
        text=choice.message.text,
        model=wire.model,
        finish_reason=choice.finish_reason,
        tool_calls=_whole(choice.message.tool_calls or ()),
        usage=reported.usage,
        cost_usd=reported.cost_usd,
        raw=raw,
        id=wire.id,
    )


def not_the_protocol(status: int, wanted: str, error: Exception | None = None) -> WattfareError:
    """The error for an answer of success that is not what the protocol says."""
    why = f": {error}" if error is not None else ""
    return WattfareError(
        f"The answer ({status}) is not {wanted}{why}. Is this address a Wattfare service's?",
        code="unknown",
        status=status,
    )


def _error_in_body(status: int, body: bytes) -> WattfareError | None:
    # Some providers fail with a 200 and say so in the body.
    if b'"error"' not in body or wire_error(body) is None:
        return None
    return error_from_answer(502, body)


def _whole(calls: Any) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(
            id=call.id or "",
            name=(call.function and call.function.name) or "",
            arguments=(call.function and call.function.arguments) or "",
            type=call.type or "function",
        )
        for call in calls
    )


class StreamReader:
    """Reads a streamed answer: bytes in, chunks out. What it has seen so far stands in its
    attributes.

    Attributes:
        done: has the answer come to its proper end?
        text, finish_reason, tool_calls, usage, cost_usd, model: of the answer so far.
    """

    def __init__(self) -> None:
        self._splitter = sse.Splitter()
        self._calls: dict[int, _ToolCall] = {}
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
        """The chunks that these bytes complete, one by one: those before an error come first,
        wherever the bytes were cut.

        Raises:
            WattfareError: an error event; or an event that is none of this protocol.
        """
        try:
            block = self._splitter.feed(data)
        except sse.EventTooLargeError as error:
            raise _broken(str(error)) from None
        yield from self._read(block)

    def end(self) -> Iterator[Chunk]:
        """The bytes have ended.

        Raises:
            WattfareError: ``upstream``; they ended too early.
        """
        if not self.done:
            # A server may leave out the empty line behind the very last event.
            yield from self._read(self._splitter.rest + b"\n\n")
        if not self.done:
            raise _broken("it ended before its end")

    def broken(self, error: Exception) -> WattfareError:
        """The error to raise where the connection broke."""
        return _broken(str(error).rstrip("."))

    def _read(self, block: bytes) -> Iterator[Chunk]:
        for event in sse.events(block):
            if self.done:
                return
            if not sse.is_done(event.data):
                yield self._chunk(event.data)
                continue
            self.done = True
            if self._calls:
                yield Chunk("", None, self._finish_calls(), None, None, {})

    def _chunk(self, data: bytes) -> Chunk:
        if (error := sse.error_in(data)) is not None:
            raise error
        try:
            wire = decode(_Body, data)
            raw = decode_raw(data)
        except msgspec.MsgspecError as error:
            raise _broken(f"an event is no chat completion chunk: {error}") from None
        self.id = wire.id or self.id
        self.model = wire.model or self.model
        text, reason = "", None
        finished: tuple[ToolCall, ...] = ()
        for choice in wire.choices:
            if choice.index != 0:
                continue  # of several choices the first is typed; all are in `raw`
            text = choice.delta.text
            reason = choice.finish_reason
            for part in choice.delta.tool_calls or ():
                self._add_call(part)
            if reason is not None:
                self.finish_reason = reason
                finished = self._finish_calls()
        if text:
            self._texts.append(text)
        reported = metering(data) if b'"usage"' in data else Metering()
        self.usage = reported.usage or self.usage
        self.cost_usd = reported.cost_usd if reported.cost_usd is not None else self.cost_usd
        return Chunk(text, reason, finished, reported.usage, reported.cost_usd, raw)

    def _add_call(self, part: _ToolCall) -> None:
        call = self._calls.get(part.index)
        if call is None:
            call = self._calls[part.index] = _ToolCall(index=part.index, function=_Function("", ""))
        call.id = call.id or part.id
        call.type = call.type or part.type
        if part.function is not None and call.function is not None:
            call.function.name = call.function.name or part.function.name
            call.function.arguments = (call.function.arguments or "") + (
                part.function.arguments or ""
            )

    def _finish_calls(self) -> tuple[ToolCall, ...]:
        finished = _whole(self._calls[index] for index in sorted(self._calls))
        self._calls.clear()
        self.tool_calls += finished
        return finished


def _broken(why: str) -> WattfareError:
    return WattfareError(f"The answer's stream broke off: {why}.", code="upstream", status=502)
