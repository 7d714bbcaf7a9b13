"""Interprets an upstream's answers: statuses, errors, completions and chunks. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeGuard, cast

import msgspec
from msgspec import UNSET, UnsetType

from ... import money
from ...errors import (
    Shortfall,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareNetworkError,
    WattfareRateLimitError,
    invalid_request,
    retry_after_in,
)
from ...json_limits import check_structure
from ...logs import get_logger
from ...types import encode, exact
from ..chat import usage as reported_usage
from ..chat.meter import MAX_CHOICES, Meter
from . import error_shapes
from .credential import Credential

log = get_logger("wattfare_mw.service", show_messages=False)

#: How many values an answer or a list of models may have. Log probabilities have many.
MAX_ELEMENTS = 1_000_000
#: The maximum number of values that are decoded at once. No other thread can run during that time.
MAX_DECODED = 200_000
#: The value of ``limitedBy`` if the payer's own key or account has no money left.
FUNDING = "funding"
#: How many characters of the upstream's own message are passed on.
MAX_MESSAGE = 500


def failed(message: str) -> WattfareError:
    """The error for a failure of the model's provider."""
    return WattfareError(message, code="upstream", status=502)


def unreachable(error: WattfareNetworkError) -> WattfareError:
    """The error if the provider could not be reached, or the connection broke. It does not show the
    provider's address to users."""
    if error.sent:
        return failed("The connection to the upstream broke.")
    return failed("The upstream could not be reached.")


class AccountRefusedError(WattfareError):
    """The upstream refuses the operator's own account: its key, its credit or its rights. Users see
    that the provider failed, because connecting again would not help."""

    default_code = "upstream"
    default_status = 502


class KeyRefusedError(WattfareFundingError):
    """The upstream refuses a payer's own key."""


def failure(
    status: int, body: bytes, headers: Mapping[str, str], credential: Credential
) -> WattfareError:
    """The error for an answer other than 200.

    Args:
        credential: the key of the call. It is removed from the upstream's message.
    """
    parsed = _parsed(body)
    retry_after = retry_after_in(headers)
    if retry_after is None:
        retry_after = parsed.retry_after
    return _failure(status, parsed, retry_after, credential)


def _parsed(body: bytes) -> error_shapes.ParsedError:
    try:
        return error_shapes.in_error(decode(body))
    except (ValueError, WattfareError):
        return error_shapes.in_text(body)


def is_no_list(status: int, failure: WattfareError) -> bool:
    """True if this failure means that the upstream has no list of models, or none for this key. Any
    other failure may be temporary."""
    about_account = isinstance(failure, AccountRefusedError)
    return about_account or status == 501 or (400 <= status < 500 and status not in (408, 429))


def _failure(
    status: int, parsed: error_shapes.ParsedError, retry_after: float | None, credential: Credential
) -> WattfareError:
    if _is_about_account(status, parsed):
        # The message is about the account that pays, and may repeat the credential.
        if credential.is_payers:
            return _payer_refused(status, parsed, retry_after)
        return _account_refused(status, parsed)
    if status == 429:
        ours = "The upstream's rate limit is reached."
        failure = WattfareRateLimitError(ours, retry_after=retry_after or 1)
    elif status == 403 and parsed.flagged:
        failure = invalid_request("The upstream's moderation refuses the prompt.", 403)
    elif 400 <= status < 500 and status not in _LATER:
        failure = invalid_request(f"The upstream refused the request ({status}).")
    else:
        failure = failed(f"The upstream failed ({status}).")
        failure.retry_after = retry_after
    return _quoting(parsed, credential, failure)


def _quoting(
    parsed: error_shapes.ParsedError, credential: Credential, failure: WattfareError
) -> WattfareError:
    """The error with the upstream's own message and code, if there are any. The log gets only our
    own message."""
    redact = credential.redactor.text
    if parsed.message is not None and (words := redact(parsed.message)[:MAX_MESSAGE]):
        failure.quote(words)
    if parsed.code is not None and redact(parsed.code) == parsed.code:
        failure.upstream_code = parsed.code
    return failure


def error_of(answer: object, credential: Credential) -> WattfareError | None:
    """The error in an answer or a chunk with status 200, or None."""
    parsed = error_shapes.in_success(answer)
    return None if parsed is None else _error_of(parsed, credential)


def error_event(data: bytes, credential: Credential) -> WattfareError:
    """The error in an event of type ``error``, which may have any data."""
    return _error_of(_parsed(data), credential)


def error_without_data(block: bytes, credential: Credential) -> WattfareError | None:
    """The error in a part of a stream that has no ``data:``, or None. llama.cpp has sent errors in
    a field of their own (ggml-org/llama.cpp#16109). Other servers send the JSON alone."""
    field = _ERROR_FIELD.search(block)
    if field is not None:
        return error_event(field[1], credential)
    if not block.lstrip().startswith((b"{", b"[")):
        return None
    try:
        return error_of(decode(block), credential)
    except ValueError:
        return None


_ERROR_FIELD = re.compile(rb"^error: ?(\{[^\r\n]*)", re.MULTILINE)


def _error_of(parsed: error_shapes.ParsedError, credential: Credential) -> WattfareError:
    return _failure(_status_of(parsed), parsed, parsed.retry_after, credential)


def _status_of(parsed: error_shapes.ParsedError) -> int:
    """The status that fits an error."""
    if parsed.status is not None:
        return parsed.status
    named = (_STATUS_BY_NAME[name] for name in parsed.names if name in _STATUS_BY_NAME)
    return next(named, 502)


def _is_about_account(status: int, parsed: error_shapes.ParsedError) -> bool:
    if parsed.flagged or parsed.names & _PROMPT_ERRORS:
        return False
    if {status, parsed.status} & _ACCOUNT_STATUSES or parsed.names & _ACCOUNT_ERRORS:
        return True
    return _has_words(parsed, _MONEY_WORDS) or _has_words(parsed, _KEY_WORDS)


def _has_words(parsed: error_shapes.ParsedError, words: re.Pattern[str]) -> bool:
    return parsed.message is not None and words.search(parsed.message[:MAX_MESSAGE]) is not None


def _account_refused(status: int, parsed: error_shapes.ParsedError) -> AccountRefusedError:
    """The error, and a log line that tells the operator what to do. The line has only known names
    of errors, and no other text of the upstream."""
    status = parsed.status or status
    known = sorted(parsed.names & _ACCOUNT_ERRORS)
    if _is_about_money(status, parsed):
        advice = "Its credit or quota is used up: add credit, or raise the limit of the account."
    elif status == 401 or known or _has_words(parsed, _KEY_WORDS):
        advice = "Check the operator's key: --upstream-key, or WATTFARE_UPSTREAM_KEY."
    else:
        advice = "Check what the operator's key and account are allowed to do."
    log.error(
        "The upstream refuses the operator's account (%s). %s",
        ", ".join([str(status), *known]),
        advice,
    )
    return AccountRefusedError(
        "The model's provider refuses the account of this service. Only its operator can help."
    )


def _payer_refused(
    status: int, parsed: error_shapes.ParsedError, retry_after: float | None
) -> WattfareError:
    """The error for a payer's own key or account. The message says what the payer can do."""
    status = parsed.status or status
    account_names = parsed.names & _ACCOUNT_ERRORS
    is_key_limit = status != 401 and _has_words(parsed, _KEY_LIMIT_WORDS)
    if is_key_limit or _is_about_money(status, parsed):
        if retry_after is not None and status in (402, 429):
            return WattfareRateLimitError(
                "The model's provider accepts no more calls from this account for now.",
                retry_after=retry_after,
            )
        message = (
            "The key that pays has reached its own limit at the model's provider. Raise the limit "
            "of this key there, or pay with another key."
            if is_key_limit
            else "The account that pays has no credit left at the model's provider. Add credit "
            "there, or pay with another key."
        )
        return WattfareBudgetExceededError(message, shortfall=Shortfall(limited_by=FUNDING))
    # The error of a provider behind OpenRouter is not about OpenRouter's key.
    is_about_key = status == 401 or account_names & _KEY_REFUSALS or _has_words(parsed, _KEY_WORDS)
    if is_about_key and not parsed.quoted:
        return KeyRefusedError(
            "The model's provider refuses the key that pays. Connect the funding again."
        )
    return failed("The model's provider does not let the account that pays make this call.")


def _is_about_money(status: int, parsed: error_shapes.ParsedError) -> bool:
    known = parsed.names & _ACCOUNT_ERRORS
    return status == 402 or not known <= _KEY_ERRORS or _has_words(parsed, _MONEY_WORDS)


#: Statuses of a request that can be sent again: a timeout, and "Too Early".
_LATER = (408, 425)
#: Statuses about the account that pays: its key, its credit, its rights.
_ACCOUNT_STATUSES = frozenset({401, 402, 403})
#: The names of errors about a key or its rights, as OpenAI, Anthropic and Google give them. They
#: come with other statuses, too.
_KEY_ERRORS = frozenset(
    {
        "account_deactivated",
        "api_key_invalid",
        "authentication_error",
        "incorrect_api_key",
        "invalid_api_key",
        "invalid_authentication_error",
        "permission_denied",
        "permission_error",
        "unauthenticated",
        "unauthorized",
    }
)
#: The names that mean an invalid key. The others are about its rights.
_KEY_REFUSALS = _KEY_ERRORS - {"account_deactivated", "permission_denied", "permission_error"}
#: The names of errors about the account's money. Many come with 429, as rate limits do.
_ACCOUNT_ERRORS = _KEY_ERRORS | {
    "arrearage",
    "billing_error",
    "billing_hard_limit_reached",
    "billing_not_active",
    "budget_exceeded",
    "credit_limit",
    "credit_exhausted",
    "credits_exhausted",
    "exceeded_current_quota_error",
    "insufficient_balance",
    "insufficient_credits",
    "insufficient_quota",
    "payment_required",
    "quota_exceeded_error",
}
#: The words of errors about the account's money, for errors without a name. Anthropic and Google
#: send them with a 400, xAI and Zhipu with a 429, DeepInfra with a 422.
_MONEY_WORDS = re.compile(
    r"credit balance is too low|(?:insufficient|not enough) (?:account )?"
    r"(?:balance|credits?|funds|quota)|balance is insufficient"
    r"|specified (?:workspace )?API usage limits|enable billing"
    r"|(?:add|enter) a (?:valid )?payment method"
    r"|(?:used all|run out of|out of) (?:\w+ )?(?:credits|funds)|spending limit"
    r"|account (?:is |has been )?(?:suspended|deactivated|disabled|locked|in arrears)"
    r"|余额不足|欠费|账户已被锁定|账号已被锁定",
    re.IGNORECASE,
)
#: The words of errors about the limit of a key. OpenRouter sends them with a 402 or a 403.
_KEY_LIMIT_WORDS = re.compile(
    r"\bkey limit\b|\blimit (?:of|on|for) (?:this|the|your) (?:api )?key\b"
    r"|key with a higher|openrouter\.ai/[\w/-]*\bkeys\b",
    re.IGNORECASE,
)
#: The words of errors about a key. Google and xAI send them with a 400.
_KEY_WORDS = re.compile(
    r"(?:incorrect|invalid|expired) api[ -]?key|api[ -]?key (?:is )?(?:not valid|invalid|expired)",
    re.IGNORECASE,
)
#: The names of errors about the prompt or the model, even if their status is 403.
_PROMPT_ERRORS = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "model_not_found",
        "moderation_blocked",
    }
)
#: The status of an error that has no status, by its name.
_STATUS_BY_NAME = {
    "context_length_exceeded": 400,
    "invalid_argument": 400,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "resource_exhausted": 429,
}


class _Finish(msgspec.Struct):
    index: Any = None
    finish_reason: Any = None


class _Finished(msgspec.Struct):
    choices: list[_Finish] | None = None


_FINISH = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_decode_finished = msgspec.json.Decoder(_Finished).decode


class Finishes:
    """Records which choices of a stream have ended. Some providers do not send ``[DONE]``: they
    only end the body."""

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
            if choice.finish_reason and choice.finish_reason != "error":
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
        answer = _decode(body if values <= MAX_DECODED else _without_logprobs(body, values))
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
    error = error_of(answer, credential) or _failure_of_all(fields, choices, credential)
    _add_usage(fields, meter, generated=generated or error is None)
    if error is not None:
        raise error
    if headers is not None and not meter.cost_reported:
        meter.add_usage({"cost": headers.get(_COST_HEADER)})
    meter.generated = meter.complete = True
    if not strict:
        body = encode(fields)
    elif _has_billed_cost(_fields(fields.get("usage")), meter):
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
        usage = _fields(_decode(bytes(fields.get("usage", b"null"))))
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
    fields = _fields(decode(like))
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
        parsed = error_shapes.in_error(answer)
        if parsed.message is not None:
            return _error_of(parsed, credential)
        return failed("The upstream did not answer with a completion.")
    first: WattfareError | None = None
    for choice in choices:
        failure = _failure_of(_fields(choice), credential)
        if failure is None:
            return None
        first = first or failure
    return first


def _failure_of(choice: dict[str, Any], credential: Credential) -> WattfareError | None:
    parsed = error_shapes.in_success(choice)
    if parsed is not None:
        return _error_of(parsed, credential)
    reason = choice.get("finish_reason")
    if isinstance(reason, str) and reason in _FAILURES:
        return failed("The model's provider failed while it answered.")
    return None


#: The finish reasons of a failure. The second is Zhipu's.
_FAILURES = frozenset({"error", "network_error"})


def check_size(data: bytes, most: int = MAX_ELEMENTS) -> int:
    """Refuse JSON that has too many values, or is nested too deeply. Returns the number of values;
    0 for small JSON.

    Raises:
        WattfareError: ``upstream``.
    """
    try:
        return check_structure(data, most)
    except WattfareError:
        raise _too_large() from None


def _too_large() -> WattfareError:
    return failed("The upstream's answer has too many values, or is nested too deeply.")


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
            raise _too_large()
        fields = _decode_raw(body)
        choices = _decode_choices(fields["choices"])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _too_large() from None
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
        chunk = decode(data)
    except ValueError:
        if _PING.fullmatch(data.strip()) is not None:
            return _IGNORED
        raise failed("The upstream sent an event that is not JSON.") from None
    if not isinstance(chunk, dict):
        error = error_of(chunk, credential)
        if error is not None:
            raise error
        return _IGNORED
    fields = _fields(cast("object", chunk))
    choices = _items(fields.get("choices"))
    generated = False
    for choice in choices:
        generated |= _count(_fields(choice).get("delta"), meter)
        # Some upstreams end a stream with the whole message.
        if not _fields(choice).get("delta") and not meter.generated:
            generated |= _count(_fields(choice).get("message"), meter)
    error = error_of(fields, credential) or next(
        (error for choice in choices if (error := _failure_of(_fields(choice), credential))), None
    )
    usage = _add_usage(fields, meter, generated=error is None or meter.generated)
    if error is not None:
        raise error
    return Read(generated, bool(choices), usage)


#: The result of a chunk that has only text.
TEXT = Read(generated=True, may_end=False)
_NOTHING = Read(may_end=False)
_IGNORED = Read(choices=False, passes=False)
#: Some gateways send events that are empty or a single word, to keep a connection open.
_PING = re.compile(rb"[A-Za-z_-]{0,32}")


# The usual chunk has only text. Untracked structs save the garbage collector work.


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
    # Reports that do not have "usage" in their name.
    timings: None = None
    eval_count: None = None
    metrics: None = msgspec.field(default=None, name="amazon-bedrock-invocationMetrics")


_decode_plain = msgspec.json.Decoder(_PlainChunk).decode


def decode(data: bytes) -> Any:
    """Decode JSON, with fractions as Decimal. Some values that Python writes are not valid JSON.
    They are replaced: ``NaN`` and the infinities by None, half a surrogate pair by U+FFFD.

    Raises:
        ValueError: it is not JSON.
        WattfareError: ``upstream``; it has too many values, or is nested too deeply.
    """
    check_size(data, MAX_DECODED)
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
    """Count the output in a message, or in a piece of one. Returns True if there is any."""
    fields = _fields(made)
    content = fields.get("content")
    if content and isinstance(content, str) and fields.keys() <= _PLAIN:
        meter.count(1, content)
        return True
    if not any(value for name, value in fields.items() if name != "role"):
        return False
    meter.count(1, _text_of(fields))
    return True


#: The fields of a message whose content is all of its text.
_PLAIN = frozenset({"role", "content"})


def _text_of(fields: dict[str, Any]) -> str:
    """The text of the model, without repetitions: `reasoning_details` repeat `reasoning`, or have
    it encrypted."""
    thought = fields.get("reasoning") or fields.get("reasoning_content")
    texts = [fields.get("content"), fields.get("refusal"), thought]
    for part in map(_fields, _items(fields.get("content"))):
        texts += [part.get("text"), part.get("thinking")]
        # Mistral nests the text of its reasoning.
        texts += [_fields(inner).get("text") for inner in _items(part.get("thinking"))]
    for call in (*_items(fields.get("tool_calls")), {"function": fields.get("function_call")}):
        function = _fields(_fields(call).get("function"))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):  # instead of JSON as text
            arguments = encode(cast("object", arguments)).decode()
        texts += [function.get("name"), arguments]
        texts.append(_fields(_fields(call).get("custom")).get("input"))
    return "".join(text for text in texts if isinstance(text, str))


def _items(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _fields(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
