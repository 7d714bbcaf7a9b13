"""What an upstream's answers mean: statuses, errors, completions and chunks. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeGuard, cast

import msgspec
from msgspec import UNSET, UnsetType

from ... import money
from ...errors import (
    WattfareError,
    WattfareFundingError,
    WattfareNetworkError,
    WattfareRateLimitError,
    invalid_request,
    retry_after_seconds,
)
from ...json_limits import check_structure
from ...types import encode, exact
from ..chat import usage as reported_usage
from ..chat.meter import Meter
from .redaction import Redactor

#: How many values an answer may have. Those with log probabilities have many.
MAX_ELEMENTS = 1_000_000
#: As much of the upstream's own words as is passed on, in characters.
MAX_MESSAGE = 500


def failed(message: str) -> WattfareError:
    """The model's provider failed."""
    return WattfareError(message, code="upstream", status=502)


def unreachable(error: WattfareNetworkError) -> WattfareError:
    """The provider could not be reached, or broke off; its address is the operator's business."""
    if error.sent:
        return failed("The connection to the upstream broke.")
    return failed("The upstream could not be reached.")


def failure(
    status: int, body: bytes, headers: Mapping[str, str], redactor: Redactor
) -> WattfareError:
    """What an answer other than 200 stands for.

    Args:
        redactor: removes the operator's key from the upstream's own words.
    """
    try:
        error = _fields(decode(body)).get("error")
    except (ValueError, WattfareError):
        error = None
    retry_after = retry_after_seconds(headers.get("retry-after"))
    return _failure(status, error, retry_after, redactor)


def _failure(
    status: int, error: object, retry_after: float | None, redactor: Redactor
) -> WattfareError:
    if status == 403 and _is_flagged(error):
        ours = "The upstream's moderation refuses the prompt."
        return _quoting(error, redactor, invalid_request(ours, 403))
    if status in _ACCOUNT_STATUSES or _is_about_account(error):
        # The words are about the operator's own account, and may repeat the credential.
        return WattfareFundingError("The funding key was refused upstream: reconnect.")
    if status == 429:
        ours = "The upstream is asked too often."
        failure = WattfareRateLimitError(ours, retry_after=retry_after or 1)
    elif 400 <= status < 500:
        failure = invalid_request(f"The upstream refused the request ({status}).")
    else:
        failure = failed(f"The upstream failed ({status}).")
    return _quoting(error, redactor, failure)


def _quoting(error: object, redactor: Redactor, failure: WattfareError) -> WattfareError:
    """The error with the upstream's own words as its message, if there are any. The log keeps
    our words."""
    said = error if isinstance(error, str) else _fields(error).get("message")
    if isinstance(said, str) and (said := redactor.text(said)[:MAX_MESSAGE]):
        failure.quote(said)
    return failure


def error_of(answer: object, redactor: Redactor) -> WattfareError | None:
    """The error that an answer or a chunk with status 200 holds, or None."""
    error = _fields(answer).get("error")
    return _error_of(error, redactor) if error else None


def _error_of(error: object, redactor: Redactor) -> WattfareError:
    return _failure(_status_of(error) or 502, error, None, redactor)


def _is_about_account(error: object) -> bool:
    fields = _fields(error)
    names = (fields.get("code"), fields.get("type"), fields.get("status"))
    if any(isinstance(name, str) and name.lower() in _ACCOUNT_ERRORS for name in names):
        return True
    return _status_of(error) in _ACCOUNT_STATUSES and not _is_flagged(error)


def _status_of(error: object) -> int | None:
    """The status that an error would have been: OpenRouter's code is one, at times as text."""
    fields = _fields(error)
    for code in (fields.get("code"), fields.get("status")):
        if isinstance(code, str) and code.isascii() and code.isdigit():
            code = int(code[:4])
        if type(code) is int and 400 <= code < 600:
            return code
    return None


def _is_flagged(error: object) -> bool:
    """Is it the prompt that the upstream will not have, as OpenRouter says it?"""
    return bool(_fields(_fields(error).get("metadata")).get("reasons"))


#: The statuses that are about the operator's own account: its key, its credits, its rights.
_ACCOUNT_STATUSES = frozenset({401, 402, 403})
#: The names of such errors, as OpenAI, Anthropic, Google and OpenRouter give them. They come with
#: other statuses, too.
_ACCOUNT_ERRORS = frozenset(
    {
        "account_deactivated",
        "authentication_error",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_credits",
        "insufficient_quota",
        "invalid_api_key",
        "payment_required",
        "permission_denied",
        "permission_error",
        "unauthenticated",
        "unauthorized",
    }
)


def read_completion(
    body: bytes, meter: Meter, redactor: Redactor, headers: Mapping[str, str] | None = None
) -> bytes:
    """Meter a whole answer. Returns it as JSON that every client can read, with what it costs the
    user in ``usage.cost``, and without the operator's key.

    Args:
        headers: those of the answer. LiteLLM names the cost in one of them.

    Raises:
        WattfareError: ``upstream``; it is an error, or no answer.
    """
    _check_structure(body)
    strict = True
    try:
        answer = _decode(body)
    except ValueError:
        strict = False
        try:
            answer = _decode_loosely(body)
        except ValueError:
            raise failed("The upstream did not answer with JSON.") from None
    fields = _fields(answer)
    choices = _items(fields.get("choices"))
    generated = False
    for choice in choices:
        # Our own count, in case the upstream reports none.
        generated |= _count(_fields(choice).get("message"), meter)
    error = error_of(answer, redactor) or _failure_of_all(choices, redactor)
    _add_usage(fields, meter, generated=generated or error is None)
    if error is not None:
        raise error
    if headers is not None and not meter.cost_reported:
        meter.add_usage({"cost": headers.get(_COST_HEADER)})
    meter.generated = meter.complete = True
    return redactor.answer(with_cost(body if strict else encode(fields), meter))


#: LiteLLM's proxy names the cost here. The headers of a stream come too early to have it.
_COST_HEADER = "x-litellm-response-cost"


def with_cost(data: bytes, meter: Meter) -> bytes:
    """An answer, or the chunk of a stream, whose ``usage.cost`` is what the user is billed.

    Most upstreams report no cost. OpenRouter reports only its fee if the operator has a key of
    their own at the model's provider. Some report an amount that is not a number.

    Args:
        data: a JSON object. It gets a usage if it has none.
    """
    try:
        fields: dict[str, Any] = _decode_raw(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fields = {name: msgspec.Raw(encode(value)) for name, value in decode(data).items()}
    try:
        usage = _fields(_decode(bytes(fields.get("usage", b"null"))))
    except ValueError:
        usage = {}
    cost, billed = usage.get("cost"), meter.billed
    if _is_number(cost) and cost >= 0 and _is_billed(cost, billed):
        return data
    counts = {"prompt_tokens": meter.prompt_tokens, "completion_tokens": meter.completion_tokens}
    if not any(_is_number(usage.get(name)) and usage[name] > 0 for name in counts):
        usage |= counts | {"total_tokens": sum(counts.values())}
    if isinstance(cost, dict):
        usage.setdefault("cost_details", cast("object", cost))
    usage["cost"] = money.usd(billed)
    return encode({**fields, "usage": usage})


def usage_chunk(like: bytes, meter: Meter) -> bytes:
    """The last chunk of a stream, which has nothing but the usage.

    Args:
        like: another chunk of the same stream.
    """
    fields = _fields(decode(like))
    same = {name: fields[name] for name in _SAME_IN_EACH_CHUNK if name in fields}
    return with_cost(encode({**same, "choices": []}), meter)


_SAME_IN_EACH_CHUNK = ("id", "object", "created", "model", "provider", "system_fingerprint")


def _is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _is_billed(cost: int | Decimal, billed: int) -> bool:
    try:
        return money.nanos_ceil(money.amount(cost, most=money.MAX_CAP_USD)) == billed
    except ValueError:
        return False


_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _add_usage(fields: dict[str, Any], meter: Meter, *, generated: bool) -> bool:
    """Meter the usage that an answer or a chunk reports. Is there any?

    Args:
        generated: False for a failure without an answer. Only a cost that it names counts.
    """
    found = False
    tier = fields.get("service_tier")
    if isinstance(tier, str):
        meter.tier = tier  # the one that it was served in, which need not be the requested one
    for choice, usage in reported_usage.find(fields):
        found = True
        if generated or reported_usage.read(usage).cost:
            meter.add_usage(usage, choice)
    return found


def _failure_of_all(choices: list[Any], redactor: Redactor) -> WattfareError | None:
    """The failure of an answer that has no choice, or whose choices have all failed."""
    if not choices:
        return failed("The upstream did not answer with a completion.")
    failures = [_failure_of(_fields(choice), redactor) for choice in choices]
    return failures[0] if all(failures) else None


def _failure_of(choice: dict[str, Any], redactor: Redactor) -> WattfareError | None:
    error = choice.get("error")
    if error:
        return _error_of(error, redactor)
    if choice.get("finish_reason") == "error":
        return failed("The model's provider failed while it answered.")
    return None


def _check_structure(data: bytes) -> None:
    try:
        check_structure(data, MAX_ELEMENTS)
    except WattfareError:
        raise failed(
            "The upstream's answer has too many values, or is nested too deeply."
        ) from None


class Read(msgspec.Struct, frozen=True):
    """What a chunk is.

    Attributes:
        generated: it holds something that the model made.
        choices: it has any.
        usage: it reports usage.
        passes: it is for the client.
    """

    generated: bool = False
    choices: bool = True
    usage: bool = False
    passes: bool = True


def read_chunk(data: bytes, meter: Meter, redactor: Redactor) -> Read:
    """Meter a chunk of a stream.

    Raises:
        WattfareError: ``upstream``; it is an error, or not JSON.
    """
    try:
        plain = _decode_plain(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # it takes a closer look
    else:
        # A vendor's own field can report usage, too.
        if data.count(b"usage") == (plain.usage is not UNSET):
            read = _NOTHING
            for choice in plain.choices:
                text = choice.delta.content
                if text:
                    meter.count(1, text)
                    read = _TEXT
            return read
    try:
        chunk = decode(data)
    except ValueError:
        raise failed("The upstream sent an event that is not JSON.") from None
    if not isinstance(chunk, dict):
        return _IGNORED
    fields = _fields(cast("object", chunk))
    choices = _items(fields.get("choices"))
    generated = False
    for choice in choices:
        generated |= _count(_fields(choice).get("delta"), meter)
        # Some upstreams end a stream with the whole message.
        if not _fields(choice).get("delta") and not meter.generated:
            generated |= _count(_fields(choice).get("message"), meter)
    error = error_of(fields, redactor) or next(
        (error for choice in choices if (error := _failure_of(_fields(choice), redactor))), None
    )
    usage = _add_usage(fields, meter, generated=error is None or meter.generated)
    if error is not None:
        raise error
    return Read(generated, bool(choices), usage)


_TEXT = Read(generated=True)
_NOTHING = Read()
_IGNORED = Read(choices=False, passes=False)


# A chunk that holds text only, as most do. None of it can be part of a cycle.


class _PlainDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Any = None
    content: str | None = None


class _PlainChoice(msgspec.Struct, gc=False):
    delta: _PlainDelta
    error: None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None


class _PlainChunk(msgspec.Struct, gc=False):
    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1)]
    usage: UnsetType | None = UNSET
    error: None = None


_decode_plain = msgspec.json.Decoder(_PlainChunk).decode


def decode(data: bytes) -> Any:
    """JSON, its fractions as Decimal. What Python's own writer makes and JSON has not is made
    good: ``NaN`` and its kin are None, half a surrogate pair is U+FFFD.

    Raises:
        ValueError: it is not even that.
        WattfareError: ``upstream``; it has too many values, or is nested too deeply.
    """
    _check_structure(data)
    try:
        return _decode(data)
    except ValueError:
        return _decode_loosely(data)


def _decode(data: bytes) -> Any:
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("not strictly JSON") from None


def _decode_loosely(data: bytes) -> Any:
    try:
        return _whole_text(json.loads(data, parse_float=exact, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


_DECODER = msgspec.json.Decoder(float_hook=exact)


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_text(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {_whole_text(name): _whole_text(item) for name, item in fields.items()}
    return value


def _count(made: object, meter: Meter) -> bool:
    """Count what a message, or a piece of one, holds. Is there anything that the model made?"""
    fields = _fields(made)
    content = fields.get("content")
    if content and isinstance(content, str) and fields.keys() <= _PLAIN:
        meter.count(1, content)
        return True
    if not any(value for name, value in fields.items() if name != "role"):
        return False
    meter.count(1, _text_of(fields))
    return True


#: Where a message holds no more than this, its content is its text.
_PLAIN = frozenset({"role", "content"})


def _text_of(fields: dict[str, Any]) -> str:
    """What the model wrote, once. (`reasoning_details` say again what `reasoning` does, or hold
    it encrypted.)"""
    thought = fields.get("reasoning") or fields.get("reasoning_content")
    texts = [fields.get("content"), fields.get("refusal"), thought]
    for part in map(_fields, _items(fields.get("content"))):
        texts += [part.get("text"), part.get("thinking")]
        # Mistral nests the text of its reasoning.
        texts += [_fields(inner).get("text") for inner in _items(part.get("thinking"))]
    for call in (*_items(fields.get("tool_calls")), {"function": fields.get("function_call")}):
        function = _fields(_fields(call).get("function"))
        texts += [function.get("name"), function.get("arguments")]
        texts.append(_fields(_fields(call).get("custom")).get("input"))
    return "".join(text for text in texts if isinstance(text, str))


def _items(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _fields(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
