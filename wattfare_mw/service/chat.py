"""An inference request, read once: what the service decides on is what it forwards."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .refusals import invalid

MAX_MODEL_CHARACTERS = 256
#: More tokens than any model gives; a number beyond is a mistake.
MAX_TOKENS = 10_000_000

_TOKEN_FIELDS = ("max_completion_tokens", "max_tokens")
_LOOKED_AT = frozenset(
    {"model", "models", "messages", "n", "stream", "stream_options", *_TOKEN_FIELDS}
)


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields that the service looks at, and the whole body.

    ``body`` is decoded JSON: where a name stood in it twice, one value is left, the one that was
    looked at. ``max_tokens`` is under whichever name the client used; ``fallbacks`` are the models
    that an upstream may turn to instead (OpenRouter's ``models``).
    """

    model: str
    fallbacks: tuple[str, ...]
    messages: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    body: dict[str, Any]

    def __repr__(self) -> str:
        return f"ChatRequest({self.model!r}, stream={self.stream})"  # prompts are not for logs


def read(body: bytes) -> ChatRequest:
    """The request in this body.

    Raises:
        WattfareError: ``invalid_request``, with what is wrong.
    """
    try:
        fields: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise invalid("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise invalid("The body is a JSON object.")
    known = cast("dict[str, Any]", fields)
    _check_names(known)
    model = known.get("model")
    if not _is_model(model):
        raise invalid(f"`model` is a string of 1 to {MAX_MODEL_CHARACTERS} characters.")
    _check_n(known.get("n"))
    stream = _flag(known, "stream")
    return ChatRequest(
        model=cast("str", model),
        fallbacks=_fallbacks(known.get("models")),
        messages=_messages(known.get("messages")),
        stream=stream,
        include_usage=_include_usage(known.get("stream_options"), stream),
        max_tokens=_max_tokens(known),
        body=known,
    )


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content is a string, parts of text, or nothing.

    Raises:
        WattfareError: ``invalid_request``; it holds something else.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_part(part) for part in cast("list[object]", content))
    raise invalid("A message's `content` is a string, or an array of parts.")


def _text_part(part: object) -> str:
    fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
    text = fields.get("text")
    if fields.get("type") != "text" or not isinstance(text, str):
        raise invalid("This model reads parts of type `text` only.")
    return text


def _check_names(fields: dict[str, Any]) -> None:
    # An upstream in Go takes "Model" for "model": it must not read what nobody has looked at.
    for name in fields:
        if name not in _LOOKED_AT and name.casefold() in _LOOKED_AT:
            raise invalid(f"`{name.casefold()}` is not named as it is spelled.")


def _is_model(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_MODEL_CHARACTERS


def _fallbacks(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(map(_is_model, cast("list[object]", value))):
        raise invalid("`models` is an array of models.")
    return tuple(cast("list[str]", value))


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise invalid("`messages` is an array of at least one message.")
    messages = cast("list[object]", value)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(
            cast("dict[str, Any]", message).get("role"), str
        ):
            raise invalid("Each of `messages` is an object with a `role`.")
    return cast("list[dict[str, Any]]", messages)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"`{name}` is true or false.")
    return bool(value)


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("`stream_options` is an object.")
    if not stream:
        raise invalid("`stream_options` goes with `stream: true` only.")
    return _flag(cast("dict[str, Any]", options), "include_usage")


def _check_n(value: object) -> None:
    # `True == 1`, but true is no number of answers.
    if value is not None and (isinstance(value, bool) or value != 1):
        raise invalid("One answer for each call: `n` is 1.")


def _max_tokens(fields: dict[str, Any]) -> int | None:
    given = {name: fields[name] for name in _TOKEN_FIELDS if fields.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
            raise invalid(f"`{name}` is a whole number from 1 to {MAX_TOKENS:,}.")
    if len(set(given.values())) > 1:
        raise invalid("`max_tokens` and `max_completion_tokens` are two names of one limit.")
    return next(iter(given.values()), None)
