"""Reads an upstream's error in any provider's format. No I/O."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import msgspec

from ...types import Json, fields_of

#: The maximum depth of nested errors.
_MOST_LEVELS = 8
#: The maximum length of a message, in characters.
_MOST_WORDS = 20_000
#: A code is one word, such as ``context_length_exceeded``. A sentence is not a code.
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
#: The longest time to wait, in seconds.
_MOST_SECONDS = 86_400
#: A time in Google's JSON, such as "31s".
_DELAY = re.compile(r"(\d{1,5}(?:\.\d{1,9})?)s", re.ASCII)
#: The fields with the message of an error.
_MESSAGES = (
    *("message", "msg", "detail", "Message", "error_description", "status_msg"),
    *("errorMessage", "error_message", "error_msg", "faultstring"),
)
#: Fields that are the message of an error if there is no other. They also occur outside of errors.
_TITLES = ("description", "title")
#: The fields that an error may be wrapped in.
_WRAPPERS = (
    *("error", "errors", "detail", "base_resp", "fault", "err"),
    *("Error", "Response", "ResponseMetadata"),  # Tencent's and Volcengine's
)
#: The fields with the code of an error, or with its HTTP status.
_CODES = ("code", "error_code", "errorCode", "Code", "status_code", "statusCode")
#: The fields with the time to wait, in seconds.
_DELAYS = ("retry_after", "retry_after_seconds", "retryAfter")
#: The name of OpenRouter's header with the end of a rate limit. The error has a copy of the header.
_RESET = "X-RateLimit-Reset"
_MILLISECONDS = re.compile(r"\d{13}", re.ASCII)
#: MiniMax's own codes, which it sends under status 200: platform.minimax.io/docs/api-reference/
#: errorcode. The codes for 429 mean limits of requests, tokens, connections, growth and the time
#: window of a plan.
_STATUS_OF_MINIMAX = {
    **dict.fromkeys((1002, 1039, 1041, 2045, 2056), 429),
    **dict.fromkeys((1004, 2049), 401),
    1008: 402,
    **dict.fromkeys((1026, 1027, 1042, 2013), 400),
}
#: The fields of answers, chunks and choices.
_OF_ANSWERS = frozenset({"choices", "usage", "delta", "finish_reason", "index"})
#: The fields with which an answer, a chunk or a choice can be an error.
_OF_ERRORS = frozenset({"error", "error_message", "x_groq", "base_resp"})


class ParsedError(msgspec.Struct, frozen=True, gc=False):
    """The contents of an error.

    Attributes:
        message: the message of the innermost error, which is the most specific one.
        code: the code of the innermost error, if the code is one word.
        status: the HTTP status in the error, if there is one.
        names: all codes, types and statuses in the error that are words, in lower case.
        flagged: True if OpenRouter's moderation has refused the prompt.
        quoted: True if the upstream quotes the error of a provider behind it, as OpenRouter does.
        retry_after: how long to wait before a retry, in seconds. Google sends it in the error
            instead of a header.
    """

    message: str | None = None
    code: str | None = None
    status: int | None = None
    names: frozenset[str] = frozenset()
    flagged: bool = False
    quoted: bool = False
    retry_after: float | None = None


def in_error(answer: object) -> ParsedError:
    """Read the body of an HTTP error, which may have any shape and need not be JSON."""
    return _parsed(answer)


def in_text(body: bytes) -> ParsedError:
    """Read the body of an HTTP error that is not JSON. If it is one line of plain text, this is the
    message."""
    try:
        text = body[: 4 * _MOST_WORDS].decode().strip()
    except UnicodeDecodeError:
        return ParsedError()
    is_plain = text.isprintable() and not text.startswith(("<", "{", "["))
    return ParsedError(text[:_MOST_WORDS]) if is_plain and text else ParsedError()


def in_success(answer: Json) -> ParsedError | None:
    """Read the error in an answer or an event with status 200; None if it is not an error."""
    if isinstance(answer, dict):
        if _is_usual(answer):
            return None
        if _has_error(answer) or answer.get("object") == "error" or _is_flat(answer):
            return _parsed(answer)
        groq = answer.get("x_groq")
        if _has_error(fields_of(groq)):
            return _parsed(groq)
        return _parsed(answer) if _failed_at_minimax(answer) else None
    if isinstance(answer, list) and answer:  # Google sends a list
        first: Json = answer[0]
        return in_success(first) if isinstance(first, dict) else None
    return None


def _is_usual(fields: dict[str, Any]) -> bool:
    """True for most answers, chunks and choices: none of the checks for errors applies to them."""
    return (
        _OF_ERRORS.isdisjoint(fields)
        and not _OF_ANSWERS.isdisjoint(fields)
        and fields.get("object") != "error"
    )


def _has_error(fields: dict[str, Any]) -> bool:
    """True if there is an error with content. Gateways in Go add an empty error to each answer.
    Some servers have only a message: NousResearch/hermes-agent#65643."""
    error = fields.get("error") or fields.get("error_message")
    if isinstance(error, dict):
        return any(cast("dict[str, Any]", error).values())
    return bool(error)


def _is_flat(fields: dict[str, Any]) -> bool:
    """True if this is an error in another format than OpenAI's. An object with choices is not an
    error."""
    if not _OF_ANSWERS.isdisjoint(fields):
        return False
    if fields.get("type") == "error" or fields.get("errors") or fields.get("detail"):
        return True
    status = fields.get("status")
    if fields.get("success") is False or (isinstance(status, str) and status in _NO_CODES):
        return _message(fields, titles=()) is not None
    # DashScope's, Qianfan's, and those of gateways in front of a server.
    has_code = any(fields.get(name) not in _NO_FAULT for name in _CODES)
    return (has_code or fields.keys() == {"message"}) and _message(fields, titles=()) is not None


#: Codes that are not an error.
_NO_FAULT = (None, "", 0, "0", 200, "200", "ok", "OK", "success", "Success")


def _failed_at_minimax(fields: dict[str, Any]) -> bool:
    return fields_of(fields.get("base_resp")).get("status_code") not in _NO_FAULT


def _parsed(answer: object) -> ParsedError:
    message = code = status = None
    names: set[str] = set()
    flagged = quoted = False
    retry_after: float | None = None
    # From the outermost to the innermost error, so that the innermost one is used.
    for fields in _nested_errors(answer, _MOST_LEVELS):
        if isinstance(fields, str):
            message = fields
            continue
        metadata = fields.get("metadata")
        if isinstance(metadata, dict):
            about = cast("dict[str, Any]", metadata)
            flagged |= bool(about.get("reasons"))
            quoted |= bool(about.get("raw")) and bool(about.get("provider_name"))
        message = _message(fields) or message
        status = status or _status(fields)
        code = _code(fields) or code
        retry_after = _retry_after(fields) or retry_after
        names.update(_names(fields))
    return ParsedError(
        message and message[:_MOST_WORDS],
        code,
        status,
        frozenset(names),
        flagged,
        quoted,
        retry_after,
    )


def _nested_errors(value: object, depth: int) -> Iterator[dict[str, Any] | str]:
    """Iterate over the errors in this value, from the outermost to the innermost."""
    if depth == 0:
        return
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        yield from _in_list(cast("list[object]", value), depth)
    elif isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        yield fields
        for name in _WRAPPERS:
            inner: object = fields.get(name)
            if isinstance(inner, str) and _message(fields) is not None:
                continue  # such as "Bad Request", next to a more specific message
            if inner:
                yield from _nested_errors(inner, depth - 1)
                return
        words: object = fields.get("message")
        if isinstance(words, (dict, list)) and words:  # Mistral's
            yield from _nested_errors(cast("object", words), depth - 1)
            return
        if isinstance(words, str) and words.lstrip().startswith("{"):
            yield from _quoted(words, depth - 1)  # a gateway quotes a whole error as text
            return
        metadata: object = fields.get("metadata")
        if isinstance(metadata, dict):  # OpenRouter quotes the provider's own error
            yield from _quoted(cast("dict[str, Any]", metadata).get("raw"), depth - 1)


def _in_list(items: list[object], depth: int) -> Iterator[dict[str, Any] | str]:
    places = [_place(item) for item in items[:10]]
    if len(items) == 1 or not any(places):
        yield from _nested_errors(items[0] if items else None, depth - 1)
        return
    # FastAPI lists the errors in a body with their places.
    yield "; ".join(place for place in places if place)


def _place(item: object) -> str | None:
    if not isinstance(item, dict):
        return None
    fields = cast("dict[str, Any]", item)
    location, message = fields.get("loc"), fields.get("msg")
    if not isinstance(message, str):
        return None
    if not isinstance(location, list):
        return message
    parts = [str(part) for part in cast("list[object]", location) if isinstance(part, (str, int))]
    return f"{'.'.join(parts)}: {message}" if parts else message


def _quoted(raw: object, depth: int) -> Iterator[dict[str, Any] | str]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw[:_MOST_WORDS])
        except (ValueError, RecursionError):
            raw = None if raw.lstrip().startswith("<") else raw  # HTML is not readable
    yield from _nested_errors(raw, depth)


def _message(fields: dict[str, Any], titles: tuple[str, ...] = _TITLES) -> str | None:
    place = _place(fields) if "loc" in fields else None
    if place:
        return place
    for name in (*_MESSAGES, *titles):
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _code(fields: dict[str, Any]) -> str | None:
    for name in ("code", "error_code", "Code", "status"):
        value = fields.get(name)
        if isinstance(value, str) and _CODE.fullmatch(value) and value not in _NO_CODES:
            return value
    return None


#: Words that providers send as a code, but that do not name a kind of error.
_NO_CODES = frozenset({"error", "fail", "failed", "failure"})


def _names(fields: dict[str, Any]) -> Iterator[str]:
    reasons = [item.get("reason") for item in _details(fields)]
    for value in (
        *(fields.get(name) for name in ("code", "type", "status", "error_type")),
        *reasons,
    ):
        if isinstance(value, str):
            yield value.lower()[:100]


def _details(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Google's details of an error."""
    details = fields.get("details")
    items = cast("list[object]", details)[:10] if isinstance(details, list) else []
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


def _retry_after(fields: dict[str, Any]) -> float | None:
    for item in _details(fields):
        delay = item.get("retryDelay")
        found = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
        if found is not None:
            return float(found[1])
    metadata = fields_of(fields.get("metadata"))
    for place in (fields, metadata):
        for name in _DELAYS:
            seconds = place.get(name)
            if not isinstance(seconds, (int, Decimal)) or seconds is True:
                continue
            if 0 < seconds <= _MOST_SECONDS:
                return float(seconds)
    return _until_reset(metadata.get("headers"))


def _until_reset(headers: Json) -> float | None:
    """The seconds until a rate limit of OpenRouter ends. It names the time in milliseconds since
    1970."""
    value = fields_of(headers).get(_RESET)
    if not isinstance(value, str) or _MILLISECONDS.fullmatch(value) is None:
        return None
    seconds = int(value) / 1000 - time.time()
    return seconds if 0 < seconds <= _MOST_SECONDS else None


def _status(fields: dict[str, Any]) -> int | None:
    for name in ("code", "status", "status_code", "statusCode", "http_status_code", "http_code"):
        value = fields.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:4])
        if type(value) is int:
            if name == "status_code":  # Zhipu has other meanings for the same numbers, in `code`
                value = _STATUS_OF_MINIMAX.get(value, value)
            if 400 <= value < 600:
                return value
    return None
