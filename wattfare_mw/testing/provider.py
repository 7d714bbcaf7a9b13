"""The model for tests. It sends the test's replies, or else repeats the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .. import sse
from ..completions import ToolCall
from ..errors import invalid_request
from ..service.chat.request import ChatRequest
from ..service.models.credential import Credential
from ..service.models.echo import MODELS, PRICE, Echo, EchoJob, words_of
from ..service.records import Bounds
from ..types import encode
from .recording import CURRENT, Record
from .scripts import Fault, Reply


class ScriptedProvider:
    """A provider that accepts any model, at the prices of the built-in model."""

    keeps_records = False

    def __init__(self, *, hold: int | None) -> None:
        """
        Args:
            hold: the reserved amount of a call whose cost has no upper limit, in nano-dollars. None
                refuses such calls.
        """
        self._hold = hold

    async def models(self) -> bytes:
        """The built-in models."""
        return await Echo().models()

    def names_of(self, model: str) -> tuple[str, ...]:
        """Return the name unchanged."""
        return (model,)

    async def prepare(self, request: ChatRequest, request_id: str) -> ScriptedJob:
        """Prepare the next answer."""
        if request.n != 1:
            raise invalid_request("The model for tests supports only one answer per call.")
        record = CURRENT.get()
        if record is None:  # the test of this call has ended
            return ScriptedJob(request, _echo(request), hold=self._hold)
        stream = request.stream
        fault = record.script.take_fault(
            lambda fault: fault.on == "model" and (fault.after is None or stream)
        )
        if fault is not None and fault.after is None and fault.make_error is not None:
            raise fault.make_error()
        reply, give_back = record.script.take_reply()
        return ScriptedJob(
            request,
            reply or _echo(request),
            hold=self._hold,
            fault=fault,
            record=record,
            give_back=give_back,
        )

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """Return None: this provider keeps no records."""
        return None

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


class ScriptedJob(EchoJob):
    """One answer of the model for tests.

    Args:
        reply: the answer.
        hold: the reserved amount if the call's cost has no upper limit, in nano-dollars.
        fault: the failure in the middle of the stream.
        record: the test's record of the call.
        give_back: a function that returns the reply to the script. It is called if the call was
            refused, so that the reply was not used.
    """

    def __init__(
        self,
        request: ChatRequest,
        reply: Reply,
        *,
        hold: int | None,
        fault: Fault | None = None,
        record: Record | None = None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        prompt_tokens = reply.prompt_tokens
        if prompt_tokens is None:
            prompt_tokens = sum(len(text.split()) for text in map(_text_of, request.messages))
        pause = reply.pause or MODELS.get(request.model, 0)
        super().__init__(request, reply.words, prompt_tokens, hold=hold, pause=pause)
        self._reply = reply
        self._fault = fault
        self._record = record
        self._give_back = give_back
        self._events = 0
        self._call_parts_sent = 0  # parts of tool calls
        if reply.is_whole:
            self._limit = len(reply.words)
            tokens = reply.completion_tokens
            if tokens is None:
                tokens = len(reply.words) + 2 * len(reply.tool_calls)
            cost = PRICE.bound(prompt_tokens, tokens) if reply.cost is None else reply.cost
            self.bounds = Bounds(cost, cost)
            if request.held and hold is not None:
                self.bounds = self.bounds.holding(hold, request.held)

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Start the answer. Shorten it to what the granted amount covers."""
        self._give_back = lambda: None
        if self._reply.is_whole:
            self.meter.granted = granted
            self.meter.sent = True
        else:
            await super().start(granted, credential)

    async def body(self) -> bytes:
        """The whole answer."""
        text = "".join([await self._next_word() for _ in range(self._limit)])
        calls = [_in_message(call) for call in self._reply.tool_calls]
        for _ in range(2 * len(calls)):
            await self._pass_token()
        self._complete()
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if calls:
            message["tool_calls"] = calls
        else:
            message["content"] = text
        choice = {"index": 0, "message": message, "finish_reason": self._finish, "logprobs": None}
        fields = {"object": "chat.completion", "choices": [choice], "usage": self._usage()}
        return encode({**self._about, **fields})

    async def read_events(self) -> bytes:
        """Return the next event, or the last events."""
        delta = None if self._is_cut else await self._next_delta()
        if delta is not None:
            if not self._events:
                delta = {"role": "assistant", **delta}
            self._events += 1
            return self._chunk(delta)
        if self._fault is not None:
            self._break(self._fault)
        self._complete()
        last = self._chunk(
            {} if self._events else {"role": "assistant", "content": ""}, finish=self._finish
        )
        if self._request.include_usage:
            last += self._event({"choices": [], "usage": self._usage()})
        return last + sse.write(sse.DONE)

    async def close(self) -> None:
        """End the call. If it was refused, keep the reply for another call."""
        self._give_back()

    @property
    def _is_cut(self) -> bool:
        return self._fault is not None and self._events == self._fault.after

    @property
    def _finish(self) -> str:
        if self._limit < len(self._words):
            return "length"
        return "tool_calls" if self._reply.tool_calls else "stop"

    def _break(self, fault: Fault) -> None:
        if fault.make_error is not None:
            raise fault.make_error()
        assert self._record is not None
        self._record.is_dropped = True
        raise ConnectionAbortedError

    async def _next_delta(self) -> dict[str, Any] | None:
        if self._words_sent < self._limit:
            return {"content": await self._next_word()}
        index, is_end = divmod(self._call_parts_sent, 2)
        if self._limit < len(self._words) or index == len(self._reply.tool_calls):
            return None
        await self._pass_token()
        self._call_parts_sent += 1
        call = self._reply.tool_calls[index]
        if is_end:
            part: dict[str, Any] = {"function": {"arguments": call.arguments}}
        else:
            named = {"name": call.name, "arguments": ""}
            part = {"id": call.id, "type": "function", "function": named}
        return {"tool_calls": [{"index": index, **part}]}

    async def _next_word(self) -> str:
        word = await super()._next_word()
        if self._record is not None:
            self._record.text += word
        return word

    def _complete(self) -> None:
        super()._complete()
        reply = self._reply
        if reply.completion_tokens is not None:
            self.meter.add_usage(
                {
                    "prompt_tokens": self.meter.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                }
            )
        if reply.cost is not None:
            self.meter.charge(reply.cost)


def _echo(request: ChatRequest) -> Reply:
    """The last message of the user."""
    said = [message for message in request.messages if message["role"] == "user"]
    text = _text_of(said[-1]) if said else ""
    return Reply(tuple(words_of(text)))


def _text_of(message: dict[str, Any]) -> str:
    """The text of a message, without images and other parts."""
    content: object = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (
        cast("dict[str, Any]", part)
        for part in cast("list[object]", content)
        if isinstance(part, dict)
    )
    texts = (part.get("text") for part in parts)
    return " ".join(text for text in texts if isinstance(text, str))


def _in_message(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
