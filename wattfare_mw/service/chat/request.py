"""An inference request. It is decoded only once, so the service forwards exactly what it has
checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, cast

import msgspec

from ...errors import invalid_request
from ...json_limits import check_structure
from ...offload import LARGE_BODY
from ...types import MAX_MODEL_CHARACTERS, Json, fields_of
from . import allowed_fields, attachments
from .allowed_fields import DEFAULT_POLICY, Policy
from .attachments import Attachments
from .found import MAX_NAMED

#: The token limit of a call if the request sets none. The operator can change this default.
DEFAULT_MAX_TOKENS = 8192
#: If the budget does not cover the client's token limit, the limit is lowered, but never below
#: this.
FLOOR_TOKENS = 16
#: The largest accepted token limit. No model generates this many tokens.
MAX_TOKENS = 10_000_000

#: The maximum number of models in a request.
MAX_MODELS = 16

#: The value that some clients send for no limit.
_NO_LIMIT = -1
#: Ollama's name of the limit, in ``options``.
_OLLAMA_LIMIT = "num_predict"
_THINKING = frozenset({"reasoning", "thinking", "thinking_budget", "reasoning_budget"})
_TOKEN_FIELDS = ("max_completion_tokens", "max_tokens")
_LIMITS = frozenset({*_TOKEN_FIELDS, "options"})


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat request: the fields that the service reads, and the whole body.

    Attributes:
        body: the decoded JSON. If a name was repeated, it has only the checked value.
        max_tokens: the token limit of each of the ``n`` answers. Several fields can set it.
        thinking: the part of these tokens that is for thinking.
        never_shorten: True to refuse the call instead of shortening its answer.
        held: the fields whose cost has no bound.
        attachments: the images, files and audio in the messages.
        text: the messages without the data of attachments.
        fallbacks: other models that may answer.
    """

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    body: dict[str, Any]
    n: int = 1
    thinking: int = 0
    never_shorten: bool = False
    large: bool = False
    held: tuple[str, ...] = ()
    text: list[dict[str, Any]] = []
    attachments: Attachments | None = None
    fallbacks: tuple[str, ...] = ()

    def limits(self, default: int) -> tuple[int, int]:
        """The lowest useful token limit of each answer, and the highest.

        Args:
            default: the highest limit if the request sets none.
        """
        most = default if self.max_tokens is None else self.max_tokens
        least = most if self.never_shorten else min(most, self.thinking + FLOOR_TOKENS)
        return least, most

    @property
    def limit_names(self) -> tuple[str, ...]:
        """The fields that the client has used for the limit."""
        return tuple([known for known in _TOKEN_FIELDS if self.body.get(known) is not None])

    def limited(self, tokens: int, *names: str) -> dict[str, Any]:
        """A copy of the body with this limit in the fields ``names``. Other fields for the limit
        are removed. Ollama's field is also set, if the client has set it."""
        body = self.body.copy()
        for name in _TOKEN_FIELDS:
            body.pop(name, None)
        for name in names:
            body[name] = tokens
        options = body.get("options")
        if options and options.get(_OLLAMA_LIMIT) is not None:
            body["options"] = {**options, _OLLAMA_LIMIT: tokens}
        return body

    @property
    def models(self) -> tuple[str, ...]:
        """All models that may answer, in order."""
        return (self.model, *self.fallbacks)

    def renamed(self, names: Mapping[str, str]) -> ChatRequest:
        """The same request, with aliases replaced by their models."""
        if names.keys().isdisjoint(self.models):
            return self
        model, *others = (names.get(each, each) for each in self.models)
        body = {**self.body, "model": model}
        if others:
            asked = cast("list[str]", self.body["models"])
            body["models"] = [names.get(each, each) for each in asked]
        return msgspec.structs.replace(self, model=model, fallbacks=tuple(others), body=body)

    def __repr__(self) -> str:
        return f"ChatRequest({self.model!r}, stream={self.stream})"  # prompts stay out of logs


def read(
    body: bytes, *, never_shorten: bool = False, policy: Policy = DEFAULT_POLICY
) -> ChatRequest:
    """The request in this body.

    Args:
        never_shorten: True to refuse the call if the budget does not cover all of it.
        policy: the operator's choice for fields whose cost has no bound.

    Raises:
        WattfareError: ``invalid_request``; the message says what is wrong.
    """
    check_structure(body)
    try:
        decoded: Json = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise invalid_request("The body is not valid JSON.") from None
    if not isinstance(decoded, dict):
        raise invalid_request("The body must be a JSON object.")
    known = allowed_fields.without_nulls(decoded)
    names = known.get("models")
    fallbacks = None if names is None else _fallbacks(known, names)
    model = known.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARACTERS:
        raise invalid_request(
            f"`model` must be a string of 1 to {MAX_MODEL_CHARACTERS} characters."
        )
    if "," in model or (fallbacks and "," in "".join(fallbacks)):
        # LiteLLM calls each model of such a list.
        raise invalid_request("`model` must not have a comma: a call is for one model.")
    stream = _flag(known, "stream")
    messages = _messages(known.get("messages"))
    request = ChatRequest(
        model=model,
        messages=messages,
        stream=stream,
        include_usage=_include_usage(known),
        max_tokens=_max_tokens(known),
        body=known,
        n=_whole(known, "n", allowed_fields.MAX_N) or 1,
        thinking=_thinking(known),
        never_shorten=never_shorten,
        large=len(body) > LARGE_BODY,
        held=allowed_fields.check(known, policy),
        text=messages,
    )
    if fallbacks:
        others = dict.fromkeys(each for each in fallbacks if each != model)
        request = msgspec.structs.replace(request, fallbacks=tuple(others))
    if not attachments.are_possible(messages):
        return request
    text, attached = attachments.take_out(messages)
    if attached is None:
        return request
    if attached.unbounded and policy.unbounded == "refuse":
        raise attachments.refusal(*attached.unbounded[0])
    names = (name for name, _ in attached.unbounded)
    held = tuple(dict.fromkeys((*request.held, *names)))[:MAX_NAMED]
    return msgspec.structs.replace(request, text=text, attachments=attached, held=held)


def text_of(message: dict[str, Any]) -> str:
    """The text of a message whose content is a string, text parts, or null.

    Raises:
        WattfareError: ``invalid_request``; it has other parts.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_part(part) for part in cast("list[Any]", content))
    raise invalid_request("A message's `content` must be a string or an array of parts.")


#: The types of parts that the echo model repeats. It ignores the types in `_UNREAD`, such as
#: thoughts.
_READ = frozenset({"text", "input_text", "output_text"})
_UNREAD = frozenset(
    {
        *("refusal", "thinking", "redacted_thinking", "reasoning", "reference"),
        *("tool_use", "tool_result", "search_result"),
    }
)


def _text_part(part: Json) -> str:
    fields = fields_of(part)
    text, kind = fields.get("text"), fields.get("type")
    if kind in _UNREAD:
        return ""
    if kind not in _READ or not isinstance(text, str):
        raise invalid_request("This model reads only parts of type `text`.")
    return text


def _messages(value: Json) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise invalid_request("`messages` must be an array of at least one message.")
    message: Json
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid_request("Each of `messages` must be an object with a `role`.")
    return value


def _is_model(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and 0 < len(name) <= MAX_MODEL_CHARACTERS


def _fallbacks(fields: dict[str, Any], value: object) -> list[str]:
    """The names in ``models``. If the request has no ``model``, the first name becomes its
    ``model``."""
    names = cast("list[object]", value) if isinstance(value, list) else [None]
    if len(names) > MAX_MODELS or not all(map(_is_model, names)):
        raise invalid_request(
            f"`models` must be an array of up to {MAX_MODELS} strings of 1 to "
            f"{MAX_MODEL_CHARACTERS} characters."
        )
    if names and fields.get("model") is None:
        fields["model"] = names[0]
    return cast("list[str]", names)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid_request(f"`{name}` must be true or false.")
    return bool(value)


def _include_usage(fields: dict[str, Any]) -> bool:
    """True if the client asks for the usage at the end of a stream. OpenAI's clients ask in
    ``stream_options``, OpenRouter's in ``usage``. Some clients, such as VS Code, also ask if the
    answer is not a stream. It then has no effect."""
    if "usage" not in fields and "stream_options" not in fields:
        return False
    asks = _flag(_object(fields, "usage"), "include")
    return _flag(_object(fields, "stream_options"), "include_usage") or asks


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise invalid_request(f"`{name}` must be an object.")
    return cast("dict[str, Any]", value or {})


def _number(value: object) -> object:
    """A number that a client has written as ``4096.0`` or ``"4096"``, as a whole number. Many
    servers accept this."""
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 8 and value.isascii() and value.isdigit():
        return int(value)
    return value


def _whole(fields: dict[str, Any], name: str, most: int, prefix: str = "") -> int | None:
    value = _number(fields.get(name))
    # `True == 1`, but true is not a number.
    if value is not None and not (type(value) is int and 1 <= value <= most):
        raise invalid_request(f"`{prefix}{name}` must be a whole number from 1 to {most:,}.")
    return value


def _thinking(fields: dict[str, Any]) -> int:
    if _THINKING.isdisjoint(fields):
        return 0
    return max(
        _tokens_of_thinking(fields, "thinking_budget"),
        _inner(fields, "reasoning", "max_tokens"),
        _inner(fields, "thinking", "budget_tokens"),
        _inner(fields, "thinking", "token_budget"),
        _tokens_of_thinking(fields, "reasoning_budget"),
    )


def _inner(fields: dict[str, Any], name: str, limit: str) -> int:
    value = fields.get(name)
    if not isinstance(value, dict):
        return 0  # `allowed_fields.check` refuses it
    return _tokens_of_thinking(cast("dict[str, Any]", value), limit, f"{name}.")


def _tokens_of_thinking(fields: dict[str, Any], name: str, prefix: str = "") -> int:
    # 0 means no thinking or no limit, and -1 means that the model decides. Neither sets a number
    # of tokens.
    value = fields.get(name)
    if type(value) is int and value in (0, -1):
        return 0
    return _whole(fields, name, MAX_TOKENS, prefix) or 0


def _limit(fields: dict[str, Any], name: str, prefix: str = "") -> int | None:
    # For LM Studio, llama.cpp and Ollama, -1 means no limit. The service then sets its own limit.
    value = fields.get(name)
    if type(value) in (int, float) and value == _NO_LIMIT:
        return None
    return _whole(fields, name, MAX_TOKENS, prefix)


def _ollama_limit(fields: dict[str, Any]) -> int | None:
    options = fields.get("options")
    if not isinstance(options, dict):
        return None  # `allowed_fields.check` refuses it
    return _limit(cast("dict[str, Any]", options), _OLLAMA_LIMIT, "options.")


def _max_tokens(fields: dict[str, Any]) -> int | None:
    """The lowest limit. LangChain can send both names, with different values."""
    if _LIMITS.isdisjoint(fields):
        return None
    limits = [*(_limit(fields, name) for name in _TOKEN_FIELDS), _ollama_limit(fields)]
    return min((limit for limit in limits if limit is not None), default=None)
