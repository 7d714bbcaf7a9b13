"""Meters an upstream's completions and chunks. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeGuard, cast

import msgspec
from msgspec import UNSET, UnsetType

from ... import money
from ...errors import WattfareError
from ...types import Json, encode, fields_of
from ..chat import usage as reported_usage
from ..chat.meter import MAX_CHOICES, Meter
from ..errors import upstream_failed
from .credential import Credential
from .upstream_errors import error_of, error_without_choices
from .upstream_json import (
    MAX_DECODED,
    check_size,
    decode,
    decode_loosely,
    decode_strictly,
    too_large,
)


class _Finish(msgspec.Struct):
    index: Any = None
    finish_reason: Any = None


class _Finished(msgspec.Struct):
    choices: list[_Finish] | None = None


_FINISH = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_decode_finished = msgspec.json.Decoder(_Finished).decode


class Finishes:
    """Records which choices of a stream have ended. Some providers do not send ``[DONE]``: they
    only end the body. One is Perplexity: perplexityai/api-discussion#209."""

    def __init__(self) -> None:
        self._indexes: set[object] = set()

    def record(self, data: bytes) -> None:
        """Record the choices that end with this chunk."""
        if _FINISH.search(data) is None:
            return
        try:
            choices = _decode_finished(data).choices or ()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        for choice in choices:
            if choice.finish_reason and not _is_failure(choice.finish_reason):
                index = choice.index if type(choice.index) is int else 0
                # An upstream could choose large integers with colliding hashes.
                if 0 <= index < MAX_CHOICES:
                    self._indexes.add(index)

    def all_of(self, choices: int) -> bool:
        """True if this many choices have ended."""
        return len(self._indexes) >= choices


def read_completion(
    body: bytes, meter: Meter, credential: Credential, headers: Mapping[str, str] | None = None
) -> bytes:
    """Meter a whole answer. Returns it as JSON that every client can read, with the user's cost in
    ``usage.cost``, and without the key.

    Args:
        headers: the headers of the answer. LiteLLM reports the cost in one of them.

    Raises:
        WattfareError: ``upstream``; the body is an error, or not a completion.
    """
    values = check_size(body)
    strict = True
    try:
        answer = decode_strictly(body if values <= MAX_DECODED else _without_logprobs(body, values))
    except ValueError:
        strict = False
        try:
            answer = decode_loosely(body)
        except ValueError:
            raise upstream_failed("The upstream did not answer with JSON.") from None
    fields = fields_of(answer)
    choices = _items(fields.get("choices"))
    generated = False
    for choice in choices:
        # Our own count, in case the upstream reports none.
        generated |= _count(fields_of(choice).get("message"), meter)
    error = error_of(answer, credential) or _failure_of_all(fields, choices, credential)
    _add_usage(fields, meter, generated=generated or error is None)
    if error is not None:
        raise error
    if headers is not None and not meter.cost_reported:
        meter.add_usage({"cost": headers.get(_COST_HEADER)})
    meter.generated = meter.complete = True
    if not strict:
        body = encode(fields)
    elif _has_billed_cost(fields_of(fields.get("usage")), meter):
        return credential.redactor.answer(body)  # nothing changes
    return credential.redactor.answer(with_cost(body, meter))


#: LiteLLM's proxy reports the cost in this header. The headers of a stream come before the cost is
#: known.
_COST_HEADER = "x-litellm-response-cost"


def with_cost(data: bytes, meter: Meter) -> bytes:
    """Set ``usage.cost`` of an answer, or of a chunk, to what the user is billed.

    Most upstreams report no cost. If OpenRouter uses the operator's own key at the model's
    provider, it reports only its fee. Some report an amount that is not a number.

    Args:
        data: a JSON object. If it has no usage, one is added.
    """
    try:
        fields: dict[str, Any] = _decode_raw(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fields = {name: msgspec.Raw(encode(value)) for name, value in decode(data).items()}
    try:
        usage = fields_of(decode_strictly(bytes(fields.get("usage", b"null"))))
    except ValueError:
        usage = {}
    if _has_billed_cost(usage, meter):
        return data
    counts = {"prompt_tokens": meter.prompt_tokens, "completion_tokens": meter.completion_tokens}
    if not any(_is_number(usage.get(name)) and usage[name] > 0 for name in counts):
        usage |= counts | {"total_tokens": sum(counts.values())}
    if isinstance(usage.get("cost"), dict):
        usage.setdefault("cost_details", usage["cost"])
    usage["cost"] = money.usd(meter.billed)
    return encode({**fields, "usage": usage})


def usage_chunk(like: bytes, meter: Meter) -> bytes:
    """The last chunk of a stream, with only the usage.

    Args:
        like: another chunk of the same stream.
    """
    fields = fields_of(decode(like))
    same = {name: fields[name] for name in _SAME_IN_EACH_CHUNK if name in fields}
    return with_cost(encode({**same, "choices": []}), meter)


_SAME_IN_EACH_CHUNK = ("id", "object", "created", "model", "provider", "system_fingerprint")


def _is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _has_billed_cost(usage: dict[str, Any], meter: Meter) -> bool:
    """True if the cost in this usage is a number, and equal to the user's bill."""
    cost = usage.get("cost")
    if not _is_number(cost):
        return False
    billed = meter.billed
    if cost == Decimal(billed).scaleb(-9):
        return True
    try:
        nanos = money.nanos_ceil(money.amount(cost, most=money.MAX_CAP_USD))
    except ValueError:
        return False
    return nanos == billed


_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _add_usage(fields: dict[str, Any], meter: Meter, *, generated: bool) -> bool:
    """Meter the usage in an answer or a chunk. Returns True if there is any.

    Args:
        generated: False for a failure without an answer. Then only a reported cost counts.
    """
    found = False
    tier = fields.get("service_tier")
    if isinstance(tier, str):
        meter.tier = tier  # the tier that served the call, which may differ from the requested one
    for choice, usage in reported_usage.find(fields):
        found = True
        if generated or reported_usage.read(usage).cost:
            meter.add_usage(usage, choice)
    return found


def _failure_of_all(
    answer: dict[str, Any], choices: list[Any], credential: Credential
) -> WattfareError | None:
    """The failure of an answer that has no choice, or whose choices have all failed."""
    if not choices:
        return error_without_choices(answer, credential) or upstream_failed(
            "The upstream did not answer with a completion."
        )
    first: WattfareError | None = None
    for choice in choices:
        failure = _failure_of(fields_of(choice), credential)
        if failure is None:
            return None
        first = first or failure
    return first


def _failure_of(choice: dict[str, Any], credential: Credential) -> WattfareError | None:
    error = error_of(choice, credential)
    if error is not None:
        return error
    if _is_failure(choice.get("finish_reason")):
        return upstream_failed("The model's provider failed while it answered.")
    return None


def _is_failure(reason: object) -> bool:
    return isinstance(reason, str) and reason.lower() in _FAILURES


#: The finish reasons of a failure. The second is Zhipu's, the third is DeepSeek's.
_FAILURES = frozenset({"error", "network_error", "insufficient_system_resource"})


def _without_logprobs(body: bytes, values: int) -> bytes:
    """A whole answer without its log probabilities, which are not metered.

    Args:
        values: how many values it has.

    Raises:
        WattfareError: ``upstream``; the rest has too many values.
    """
    try:
        answer = _decode_logprobs(body)
        values -= sum(check_size(bytes(choice.logprobs)) for choice in answer.choices)
        if values > MAX_DECODED:
            raise too_large()
        fields = _decode_raw(body)
        choices = _decode_choices(fields["choices"])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise too_large() from None
    for choice in choices:
        choice.pop("logprobs", None)
    return encode({**fields, "choices": choices})


class _Logprobs(msgspec.Struct, gc=False):
    logprobs: msgspec.Raw = msgspec.Raw()


class _WithLogprobs(msgspec.Struct):
    choices: list[_Logprobs]


_decode_logprobs = msgspec.json.Decoder(_WithLogprobs).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class Read(msgspec.Struct, frozen=True):
    """The contents of a chunk.

    Attributes:
        generated: True if it has output of the model.
        choices: True if it has choices.
        usage: True if it reports usage.
        passes: True if it is forwarded to the client.
        may_end: True if it may end a choice. See :class:`Finishes`.
    """

    generated: bool = False
    choices: bool = True
    usage: bool = False
    passes: bool = True
    may_end: bool = True


def read_chunk(data: bytes, meter: Meter, credential: Credential) -> Read:
    """Meter a chunk of a stream.

    Raises:
        WattfareError: ``upstream``; it is an error, or it is not JSON.
    """
    try:
        plain = _decode_plain(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # it needs a closer look
    else:
        # A vendor's own field can report usage, too.
        if data.find(b"usage") < 0 or data.count(b"usage") == (plain.usage is not UNSET):
            generated = may_end = False
            for choice in plain.choices:
                text = choice.delta.content
                if text:
                    meter.count(1, text)
                    generated = True
                if choice.finish_reason is not None:
                    may_end = True
            if may_end:
                return Read(generated)
            return TEXT if generated else _NOTHING
    try:
        chunk: Json = decode(data)
    except ValueError:
        if _PING.fullmatch(data.strip()) is not None:
            return _IGNORED
        raise upstream_failed("The upstream sent an event that is not JSON.") from None
    if not isinstance(chunk, dict):
        error = error_of(chunk, credential)
        if error is not None:
            raise error
        return _IGNORED
    choices = _items(chunk.get("choices"))
    generated = False
    for choice in choices:
        generated |= _count(fields_of(choice).get("delta"), meter)
        # Some upstreams end a stream with the whole message.
        if not fields_of(choice).get("delta") and not meter.generated:
            generated |= _count(fields_of(choice).get("message"), meter)
    error = error_of(chunk, credential) or next(
        (error for choice in choices if (error := _failure_of(fields_of(choice), credential))), None
    )
    usage = _add_usage(chunk, meter, generated=error is None or meter.generated)
    if error is not None:
        raise error
    return Read(generated, bool(choices), usage)


#: The result of a chunk that has only text.
TEXT = Read(generated=True, may_end=False)
_NOTHING = Read(may_end=False)
_IGNORED = Read(choices=False, passes=False)
#: Some gateways send events that are empty or a single word, to keep a connection open.
_PING = re.compile(rb"[A-Za-z_-]{0,32}")


# The usual chunk has only text. With `gc=False`, the garbage collector does not track these
# structs, which saves time.


class _PlainDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Any = None
    content: str | None = None


class _PlainChoice(msgspec.Struct, gc=False):
    delta: _PlainDelta
    error: None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None


class _PlainGroq(msgspec.Struct, gc=False):
    error: None = None


class _PlainChunk(msgspec.Struct, gc=False):
    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1)]
    usage: UnsetType | None = UNSET
    error: None = None
    x_groq: _PlainGroq | None = None
    base_resp: None = None
    # Fields that report usage, although "usage" is not in their names.
    timings: None = None
    eval_count: None = None
    cost: None = None
    x_nanogpt_pricing: None = None
    metrics: None = msgspec.field(default=None, name="amazon-bedrock-invocationMetrics")


_decode_plain = msgspec.json.Decoder(_PlainChunk).decode


def _count(made: Json, meter: Meter) -> bool:
    """Count the output in a message, or in a piece of one. Returns True if there is any."""
    fields = fields_of(made)
    content = fields.get("content")
    if content and isinstance(content, str) and fields.keys() <= _PLAIN:
        meter.count(1, content)
        return True
    if not any(value for name, value in fields.items() if name != "role"):
        return False
    meter.count(1, _text_of(fields))
    return True


#: If a message has only these fields, its ``content`` is its whole text.
_PLAIN = frozenset({"role", "content"})


def _text_of(fields: dict[str, Any]) -> str:
    """The text of the model, without repetitions. `reasoning_details` are left out: they repeat
    `reasoning`, or contain it in encrypted form."""
    thought = fields.get("reasoning") or fields.get("reasoning_content")
    texts = [fields.get("content"), fields.get("refusal"), thought]
    for part in map(fields_of, _items(fields.get("content"))):
        texts += [part.get("text"), part.get("thinking")]
        # Mistral nests the text of its reasoning.
        texts += [fields_of(inner).get("text") for inner in _items(part.get("thinking"))]
    for call in (*_items(fields.get("tool_calls")), {"function": fields.get("function_call")}):
        function = fields_of(fields_of(call).get("function"))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):  # instead of JSON as text
            arguments = encode(cast("object", arguments)).decode()
        texts += [function.get("name"), arguments]
        texts.append(fields_of(fields_of(call).get("custom")).get("input"))
    return "".join(text for text in texts if isinstance(text, str))


def _items(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []
