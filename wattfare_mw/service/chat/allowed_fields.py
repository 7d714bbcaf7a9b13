"""The table of the fields that an inference request may have, with a rule for each field.

A reservation bounds the cost of a call, so each field has a kind, depending on what it can cost:

- *free*: adds no cost.
- *counted*: part of the reservation, as a part of the prompt or as a limit.
- *held*: the cost has no known bound. The call is allowed, and holds a fixed amount.
- *refused*: the service does not support the field, or a client could misuse the operator's keys
  with it.

**An unknown field is refused by name**, because a new field of an API may cost money. If the
operator allows unknown fields, the call is held. Some names are always refused, at any depth: see
:mod:`.foreign_fields`. Each object in a request has its own list of allowed keys. Only schemas and
arguments of functions may be any JSON. Fields that libraries add to messages have a separate rule:
see :mod:`.kept_fields`.

Sources: the request bodies of OpenAI's and OpenRouter's chat completions, and the documentation of
vLLM, SGLang, llama.cpp, Ollama, LM Studio, LiteLLM, Mistral, Groq, xAI, Perplexity, Together,
DeepSeek, Moonshot, Qwen, and of Google's and Anthropic's compatible APIs. ``null`` means absent
everywhere. :mod:`.request` checks the values of the fields that it reads (``messages``, the limits,
``n``, …).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Literal, NamedTuple, cast

import msgspec

from ...errors import invalid_request
from ...types import Json, fields_of
from . import attachments, foreign_fields, kept_fields
from .found import Found, Held, both

#: The prices in OpenRouter's `provider.max_price`.
MAX_PRICES = ("prompt", "completion", "request", "image", "audio")
#: The maximum number of answers per call, as at OpenAI.
MAX_N = 128


class Kind(StrEnum):
    """What a field can cost. The kinds are in ascending order."""

    FREE = "free"
    COUNTED = "counted"
    HELD = "held"
    REFUSED = "refused"


class Policy(msgspec.Struct, frozen=True):
    """The operator's choice for fields whose cost has no bound.

    Attributes:
        unbounded: whether to hold an amount for the held fields of the table, or to refuse them.
        unknown: whether to refuse a field that is not in the table, or to treat it as a held field.
    """

    unbounded: Literal["hold", "refuse"] = "hold"
    unknown: Literal["refuse", "pass"] = "refuse"


DEFAULT_POLICY = Policy()


Rule = Callable[[str, Any], Found | None]
"""A rule for a value. It returns the parts of the value whose cost has no bound. For a value that
is not allowed, it raises ``invalid_request`` with the name of the field."""


def check(request: dict[str, Any], policy: Policy = DEFAULT_POLICY) -> tuple[str, ...]:
    """Check the fields of a request, and refuse the first field that is not allowed.

    Returns: the names of the fields whose cost has no bound, :data:`MAX_NAMED` of them at most.

    Raises:
        WattfareError: ``invalid_request``, with the field's name.
    """
    found = _request("", request)
    if found is None:
        return ()
    if found.unknown is not None and policy.unknown == "refuse":
        raise invalid_request(
            f"The field `{found.unknown}` is unknown, so its cost has no bound. The operator of"
            " the service can allow unknown fields with --unknown-fields pass."
        )
    if found.held and policy.unbounded == "refuse":
        name, because = found.held[0]
        raise _not_allowed(name, because)
    unknown = () if found.unknown is None else (found.unknown,)
    return (*(name for name, _ in found.held), *unknown)


def without_nulls(request: dict[str, Any]) -> dict[str, Any]:
    """Remove unknown fields whose value is null. Some libraries send all their fields, and null
    means that a field is not used."""
    if None not in request.values():
        return request
    return {
        name: value
        for name, value in request.items()
        if value is not None or name in REQUEST or foreign_fields.is_foreign(name)
    }


def _not_allowed(name: str, because: str) -> Exception:
    return invalid_request(f"`{name}` is not allowed: {because}.")


def _unknown(name: str, field: str, value: Any) -> Found:
    """A field that is not in the table."""
    found = field if foreign_fields.is_foreign(field) else foreign_fields.find(value)
    if found is not None:
        raise _foreign(name, found)
    return Found(unknown=name)


def _foreign(name: str, found: str) -> Exception:
    where = f"`{name}`" if name.endswith(found) else f"`{found[:64]}` in `{name}`"
    return invalid_request(
        f"{where} is never allowed: it could redirect the call, change its credentials, store it"
        " elsewhere, or read the operator's data."
    )


def _plain(name: str, value: Any) -> None:
    """A string, a number or a boolean. It adds no cost of its own. If it is a part of the prompt,
    the prompt's bound includes it."""
    if isinstance(value, (dict, list)):
        raise invalid_request(f"`{name}` must be a string, a number or a boolean.")


def _text(name: str, value: Any) -> None:
    """Like :func:`_plain`, but only a string."""
    if not isinstance(value, str):
        raise invalid_request(f"`{name}` must be a string.")


def _json(_name: str, _value: Any) -> None:
    """Any JSON, such as a schema or the arguments of a function. The model reads it as text, and
    the prompt's bound includes it."""


def _safe_json(name: str, value: Any) -> None:
    """Any JSON without a name of :mod:`.foreign_fields`."""
    found = foreign_fields.find(value)
    if found is not None:
        raise _foreign(name, found)


def _client_keys(name: str, value: Any) -> None:
    """Any JSON whose keys the client chooses."""
    found = foreign_fields.find(value, fields=False)
    if found is not None:
        raise _foreign(name, found)


def _refused(because: str) -> Rule:
    def rule(name: str, value: Any) -> None:
        # False and [] request nothing. An empty object could mean a feature with its defaults.
        if value is not False and value != []:
            raise _not_allowed(name, because)

    return rule


def _held(because: str, *free: Any, shape: Rule = _safe_json) -> Rule:
    """A field whose cost has no bound, unless its value is one of the ``free`` ones."""

    def rule(name: str, value: Any) -> Found | None:
        if value is False or value == [] or _is_one_of(value, free):
            return None
        return both(Found((Held(name, because),)), shape(name, value))

    return rule


def _is_one_of(value: Any, known: tuple[Any, ...]) -> bool:
    # `True == 1` in Python, but they are different values in JSON.
    return any(type(value) is type(one) and value == one for one in known)


def _only(*allowed: Any) -> Rule:
    def rule(name: str, value: Any) -> None:
        if not _is_one_of(value, allowed):
            said = " or ".join(json.dumps(one) for one in allowed)
            raise invalid_request(
                f"`{name}` may only be {said}, because the cost of other values has no bound."
            )

    return rule


def _object(rules: Mapping[str, Rule]) -> Rule:
    def rule(name: str, value: Json) -> Found | None:
        if not isinstance(value, dict):
            raise invalid_request(f"`{name}` must be an object.")
        prefix = f"{name}." if name else ""
        found: Found | None = None
        for field, inner in value.items():
            known = rules.get(field)
            if known is None:
                if inner is not None or foreign_fields.is_foreign(field):
                    found = both(found, _unknown(prefix + field[:64], field, inner))
            elif known is _plain:  # the usual case, without a call and a name
                if isinstance(inner, (dict, list)):
                    _plain(prefix + field, inner)
            elif inner is not None:
                more = known(prefix + field, inner)
                if more is not None:
                    found = both(found, more)
        return found

    return rule


def _each(rule: Rule) -> Rule:
    def each(name: str, value: Json) -> Found | None:
        if not isinstance(value, list):
            raise invalid_request(f"`{name}` must be an array.")
        found: Found | None = None
        for place, item in enumerate(value):
            more = rule(f"{name}[{place}]", item)
            if more is not None:
                found = both(found, more)
        return found

    return each


def _text_or(rule: Rule, otherwise: str) -> Rule:
    def either(name: str, value: Any) -> Found | None:
        if isinstance(value, str):
            return None
        if not isinstance(value, (dict, list)):
            raise invalid_request(f"`{name}` must be a string, or {otherwise}.")
        return rule(name, value)

    return either


def _plain_or(rule: Rule) -> Rule:
    def either(name: str, value: Any) -> Found | None:
        return rule(name, value) if isinstance(value, (dict, list)) else None

    return either


def _map(name: str, value: Any) -> None:
    """An object with any keys and plain values."""
    if not isinstance(value, dict):
        raise invalid_request(f"`{name}` must be an object.")
    for key, inner in cast("dict[str, Any]", value).items():
        _plain(f"{name}.{key[:64]}", inner)
    _client_keys(name, value)


def _of_type(
    types: Mapping[str, Rule], otherwise: str, others: Callable[[str], Rule | None] | None = None
) -> Rule:
    """An object whose ``type`` selects its rule. A type that is not in ``types`` is refused by its
    name, unless ``others`` has a rule for it."""

    def rule(name: str, value: Any) -> Found | None:
        kind = fields_of(value).get("type")
        known = types.get(kind) if isinstance(kind, str) else None
        if known is None and others is not None and isinstance(kind, str):
            known = others(kind)
        if known is None:
            said = f"of type `{kind[:64]}`" if isinstance(kind, str) else "without a type"
            raise invalid_request(f"`{name}` {said} is not allowed: {otherwise}.")
        return known(name, value)

    return rule


# Every price list has a price for writing a cache for five minutes, but few have one for an hour.
_CACHE_CONTROL = _object(
    {
        "type": _only("ephemeral"),
        "ttl": _held("the price of a cache for an hour is not known", "5m", shape=_only("1h")),
    }
)
# OpenAI's, from GPT-5.6 on. These models write a cache for 30 minutes in any case.
_OPENAI_CACHE = _object(
    {"mode": _plain, "ttl": _held("the price of a longer cache is not known", "30m", shape=_text)}
)
_CACHED: Mapping[str, Rule] = {
    "cache_control": _CACHE_CONTROL,
    "prompt_cache_breakpoint": _OPENAI_CACHE,
}

# :mod:`.attachments` bounds images, files and audio.
_MEDIA = {
    "type": _plain,
    **_CACHED,
    **dict.fromkeys(("id", "index", "name", "alt"), _plain),
    "uuid": _held("the upstream may use another file that it keeps by this name", shape=_plain),
}
_OF_SIZE = _held("it sets how many tokens the model makes of an image", shape=_plain)
_OF_OPERATOR = _refused("it names a file that is kept in the operator's account")
_IMAGE = {
    **_MEDIA,
    "image_url": _text_or(_object({"url": _text, "detail": _plain, "format": _plain}), "an object"),
    "detail": _plain,
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "media_resolution"), _OF_SIZE),
    "file_id": _OF_OPERATOR,
}
_TEXT_PART = _object({"type": _only("text"), "text": _text, **_CACHED})
_TEXTS = _text_or(_each(_TEXT_PART), "an array of text parts")
_CITATIONS = _object({"enabled": _plain})
_SOURCE = _object(
    {
        "type": _plain,
        "media_type": _plain,
        "data": _text,
        "url": _text,
        "content": _TEXTS,
        "file_id": _OF_OPERATOR,
    }
)
_FILE = {
    "file_data": _text,
    **dict.fromkeys(("filename", "format", "mime_type", "media_type"), _plain),
    "detail": _held(
        "it sets how many tokens the model makes of a page", "low", "auto", shape=_text
    ),
    "video_metadata": _held("a video has no bound"),
}
_STORED = {"file_id": _OF_OPERATOR, "file_url": _text}
_SOUND = {"data": _text, "format": _plain}
_IMAGE_PARTS = {
    "image_url": _object(_IMAGE),
    "input_image": _object(_IMAGE),
    "image": _object(
        {
            **_MEDIA,
            "source": _SOURCE,
            "image": _text,
            **dict.fromkeys(("mediaType", "mimeType"), _plain),
        }
    ),
}
_ATTACHED: Mapping[str, Rule] = {
    **_IMAGE_PARTS,
    "document": _object(
        {
            **_MEDIA,
            "source": _SOURCE,
            "title": _plain,
            "context": _plain,
            "citations": _CITATIONS,
        }
    ),
    "document_url": _object(
        {
            **_MEDIA,
            "document_url": _text_or(_object({"url": _text}), "an object"),
            "document_name": _plain,
        }
    ),
    "file": _object({**_MEDIA, "file": _object({**_FILE, **_STORED})}),
    "input_file": _object({**_MEDIA, **_FILE, **_STORED}),
    "input_audio": _object(
        {**_MEDIA, "input_audio": _text_or(_object(_SOUND), "an object")},
    ),
    "audio_url": _object({**_MEDIA, "audio_url": _text_or(_object({"url": _text}), "an object")}),
    **dict.fromkeys(("video_url", "input_video", "video"), _held("a video has no bound")),
}
#: An image that a model has made, and an app sends back.
_MADE_IMAGE = _of_type(
    {"image_url": _object({**_IMAGE, "index": _plain})}, "its tokens cannot be counted"
)


def _known_or(rules: Mapping[str, Rule], other: Callable[[str, str, Any], Found | None]) -> Rule:
    """An object with these fields, and other fields.

    Args:
        other: the rule for a field that is not among them. It gets the place of the field, its
            whole name and its value.
    """

    def rule(name: str, value: Any) -> Found | None:
        if not isinstance(value, dict):
            raise invalid_request(f"`{name}` must be an object.")
        found: Found | None = None
        for field, inner in cast("dict[str, Any]", value).items():
            if inner is None:
                continue
            known, where = rules.get(field), f"{name}.{field[:64]}"
            if known is None and (folded := field.casefold()) in rules:
                # Some servers ignore the case of names. They could read it as the known field.
                raise invalid_request(f"Write `{where}` as `{folded}`.")
            more = other(where, field, inner) if known is None else known(where, inner)
            found = both(found, more)
        return found

    return rule


def _with_added_fields(rules: Mapping[str, Rule], *, by_model: bool = True) -> Rule:
    """An object with these fields, and with fields that libraries add.

    Args:
        by_model: True if a model has created the object.
    """

    def kept(name: str, field: str, value: Any) -> Found | None:
        if not by_model and foreign_fields.is_foreign(field):
            raise _foreign(name, field)
        return kept_fields.check(name, value, _CACHE_CONTROL, by_model=by_model)

    return _known_or(rules, kept)


# Types of parts in which apps send a model's earlier thoughts, texts and calls back to Mistral, to
# Anthropic and in OpenAI's Responses API. A model reads each as text.
_SAID = ("thinking", "redacted_thinking", "reasoning", "output_text", "input_text", "reference")


def _parts(*, by_model: bool) -> Rule:
    """One part of a message. ``by_model``: True if a model has created it."""

    def part(rules: Mapping[str, Rule]) -> Rule:
        return _with_added_fields({"type": _plain, **_CACHED, **rules}, by_model=by_model)

    return _of_type(
        {
            "text": part({"text": _text}),
            "refusal": part({"refusal": _text}),
            **dict.fromkeys(_SAID, part({})),
            "tool_use": part({"name": _plain, "input": _json}),
            "tool_result": part({"tool_use_id": _plain, "is_error": _plain, "content": _TEXTS}),
            "search_result": part(
                {"source": _text, "title": _plain, "content": _TEXTS, "citations": _CITATIONS}
            ),
            **_ATTACHED,
        },
        "its tokens cannot be counted before it is read",
    )


_NAMED = _object({"name": _plain})

# The model's earlier tool calls, which an app sends back.
_CALLED = _with_added_fields({"name": _plain, "arguments": _json})
_CALLS = {
    "function": _with_added_fields({"id": _plain, "type": _plain, "function": _CALLED}),
    "custom": _with_added_fields(
        {
            "id": _plain,
            "type": _plain,
            "custom": _with_added_fields({"name": _plain, "input": _plain}),
        }
    ),
}
_OF_KNOWN_TYPE = _of_type(_CALLS, "it is not a tool call")


def _tool_call(name: str, value: Any) -> Found | None:
    # Some libraries leave out the type, and some providers have their own types. If an app sends
    # back a call of Moonshot's own tool, Moonshot runs the tool again.
    fields = fields_of(value)
    kind = fields.get("type")
    if isinstance(fields.get("function"), dict) and (kind is None or isinstance(kind, str)):
        found = _CALLS["function"](name, value)
        runs = kind is not None and kind.startswith(PROVIDER_TOOLS)
        return (
            both(Found((Held(name, "the provider may run this call"),)), found) if runs else found
        )
    return _OF_KNOWN_TYPE(name, value)


#: A page of a file that OpenRouter has read. OpenRouter uses this text instead of reading the file
#: again.
_PAGE = _of_type({"text": _TEXT_PART, **_IMAGE_PARTS}, "its tokens cannot be counted")


def _annotation(name: str, value: Any) -> Found | None:
    found = None
    pages = attachments.pages_of_annotation(value)
    if pages:
        found = _each(_PAGE)(f"{name}.file.content", pages)
        file = {**value["file"], "content": None}
        value = {**value, "file": file}
    return both(found, kept_fields.check_annotation(name, value, _CACHE_CONTROL))


def _tools_of_message(name: str, value: Any) -> Found | None:
    # Kimi K3, vLLM and SGLang take tools in a message, from that place of the conversation on. An
    # app's own list of names is not a tool.
    return _each(_plain_or(_tool))(name, value)


_IN_MESSAGE: Mapping[str, Rule] = {
    "role": _text,
    "name": _plain,
    "refusal": _plain,
    "tool_calls": _each(_tool_call),
    "tool_call_id": _plain,
    "function_call": _CALLED,
    **_CACHED,
    "annotations": _each(_annotation),
    "tools": _tools_of_message,
    "audio": _held(
        "the length of the earlier audio answer is not known",
        shape=_object({**_SOUND, "id": _plain, "expires_at": _plain, "transcript": _plain}),
    ),
    "images": _each(_MADE_IMAGE),
}


def _messages(*, by_model: bool) -> Rule:
    """A message. ``by_model``: True if a model has created it."""
    content = _text_or(_each(_parts(by_model=by_model)), "an array of parts")
    return _with_added_fields({**_IN_MESSAGE, "content": content}, by_model=by_model)


_MADE_BY_MODEL, _MADE_BY_APP = _messages(by_model=True), _messages(by_model=False)


def _message(name: str, value: Any) -> Found | None:
    fields = fields_of(value)
    role = fields.get("role")
    # A faster check for the form of most messages. Both rules below also accept it.
    if len(fields) == 2 and isinstance(role, str) and isinstance(fields.get("content"), str):
        return None
    return (_MADE_BY_MODEL if role == "assistant" else _MADE_BY_APP)(name, value)


def _of_tool(rules: Mapping[str, Rule], *, plain: bool) -> Rule:
    """A tool or the function in it, with fields that libraries add.

    Args:
        plain: True to allow only plain values in added fields, because in some APIs a field of a
            tool can name a tool of the provider.
    """

    def kept(name: str, field: str, value: Any) -> None:
        if kept_fields.is_of_provider(field) or (plain and isinstance(value, (dict, list))):
            raise invalid_request(
                f"The field `{name}` of a tool is unknown, so its cost has no bound."
            )

    return _known_or(rules, kept)


_FUNCTION = _of_tool(
    {
        **dict.fromkeys(("name", "description", "strict"), _plain),
        "parameters": _json,
        "cache_control": _CACHE_CONTROL,
    },
    plain=False,
)
#: The fields that Anthropic's SDK and other libraries add to a function. The examples are text.
_BESIDE_TOOL: Mapping[str, Rule] = {
    "type": _plain,
    "cache_control": _CACHE_CONTROL,
    "input_examples": _json,
    "allowed_callers": _each(_only("direct")),
    "metadata": _json,
}
_GRAMMAR = _object({"syntax": _plain, "definition": _plain})
# The format of OpenAI's chat API, and that of its Responses API.
_TOOL_FORMAT = _object(
    {"type": _plain, "grammar": _GRAMMAR, "syntax": _plain, "definition": _plain}
)
_CUSTOM = _object({"name": _plain, "description": _plain, "format": _TOOL_FORMAT})
#: The prefixes of the types of tools that a provider runs itself: OpenAI, OpenRouter, xAI, Groq,
#: Mistral, Moonshot and Anthropic. Other types may read the operator's data at the provider
#: (``file_search``, ``mcp``).
PROVIDER_TOOLS = (
    *("openrouter:", "web_search", "web_fetch", "x_search", "live_search", "browser_search"),
    *("browser_automation", "visit_website", "wolfram_alpha", "code_interpreter"),
    *("code_execution", "image_generation", "builtin_function"),
    # Google's tools. Then Anthropic's: the provider adds their descriptions to the prompt.
    *("google_search", "google_maps", "enterprise_web_search", "url_context"),
    *("computer", "bash_", "text_editor_", "memory_", "tool_search_tool_"),
)
_RUN_BY_PROVIDER = _held("the provider runs or describes this tool, and charges for it")
#: Gemini's tools, which have no type: `{"googleSearch": {}}`.
_OF_GEMINI = frozenset(
    {
        *("googlesearch", "googlesearchretrieval", "codeexecution", "urlcontext"),
        *("enterprisewebsearch", "googlemaps", "computeruse"),
    }
)


def _of_provider(kind: str) -> Rule | None:
    return _RUN_BY_PROVIDER if kind.startswith(PROVIDER_TOOLS) else None


# The formats of OpenAI's chat API, of its Responses API and of Anthropic. All of them become text
# of the prompt.
_FLAT = {**dict.fromkeys(("name", "description", "strict"), _plain), "parameters": _json}
_FUNCTION_TOOL = _of_tool(
    {**_BESIDE_TOOL, **_FLAT, "input_schema": _json, "function": _FUNCTION}, plain=True
)
_APP_RUNS = "only tools that the app runs itself add no cost"
_TYPED_TOOL = _of_type(
    {
        "function": _FUNCTION_TOOL,
        "custom": _of_tool(
            {
                **_BESIDE_TOOL,
                **_FLAT,
                "input_schema": _json,
                "custom": _CUSTOM,
                "format": _TOOL_FORMAT,
            },
            plain=True,
        ),
    },
    _APP_RUNS,
    _of_provider,
)


def _tool(name: str, value: Any) -> Found | None:
    fields = fields_of(value)
    if fields.get("type") is None and fields:
        if isinstance(fields.get("function"), dict) or isinstance(fields.get("name"), str):
            return _FUNCTION_TOOL(name, value)
        if all(field.replace("_", "").lower() in _OF_GEMINI for field in fields):
            return _RUN_BY_PROVIDER(name, value)
    return _TYPED_TOOL(name, value)


_CHOSEN = _object(
    {
        **dict.fromkeys(("type", "name", "disable_parallel_tool_use"), _plain),
        "function": _object(_FLAT),  # some apps send the whole tool
        **dict.fromkeys(("custom", "tool"), _NAMED),
    }
)
_CHOSEN_TOOL: Mapping[str, Rule] = {"function": _CHOSEN, "custom": _CHOSEN, "tool": _CHOSEN}
_ALLOWED_TOOLS = {"mode": _plain, "tools": _each(_of_type(_CHOSEN_TOOL, "it is not a tool"))}
_TYPED_CHOICE = _of_type(
    {
        **_CHOSEN_TOOL,
        # Anthropic's shape.
        **dict.fromkeys(("auto", "any", "none", "required"), _CHOSEN),
        "allowed_tools": _object(
            {"type": _plain, **_ALLOWED_TOOLS, "allowed_tools": _object(_ALLOWED_TOOLS)}
        ),
    },
    _APP_RUNS,
    _of_provider,
)


def _tool_choice(name: str, value: Any) -> Found | None:
    fields = fields_of(value)
    if fields.get("type") is None and isinstance(fields.get("function"), dict):
        return _CHOSEN(name, value)
    return _TYPED_CHOICE(name, value)


# A format becomes text of the prompt. Servers have their own names for kinds that OpenAI does not
# have.
_RESPONSE_FORMAT = _object(
    {
        **dict.fromkeys(("type", "name", "description", "strict", "pattern"), _plain),
        "enforce_validation": _plain,
        **dict.fromkeys(
            (
                *("json_schema", "schema", "response_schema", "value", "regex", "grammar"),
                *("structures", "triggers", "format"),
            ),
            _plain_or(_json),
        ),
    }
)

# Thinking is part of the answer, and ends with its limit: see `chat.ChatRequest.floor`.
_REASONING = _object(
    {
        **dict.fromkeys(
            (
                *("effort", "max_tokens", "exclude", "enabled", "summary", "generate_summary"),
                "context",
            ),
            _plain,
        ),
        # OpenRouter calls another model for it: `gpt-5.6-pro` for `gpt-5.6`.
        "mode": _held("another mode can call a more expensive model", "standard", shape=_text),
    }
)


def _max_price(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise invalid_request(f"`{name}` must be an object.")
    for key, price in cast("dict[str, Any]", value).items():
        if key not in MAX_PRICES:
            raise invalid_request(f"`{name}` may have {', '.join(MAX_PRICES)}.")
        if price is not None and max_price_of(price) is None:
            raise invalid_request(f"`{name}.{key}` must be a number of USD, at least 0.")


def max_price_of(value: Any) -> float | None:
    """A price in ``max_price``, in USD. OpenRouter accepts a number or a string. None for any other
    value."""
    if type(value) not in (int, float, str):
        return None
    try:
        price = float(value)
    except (ValueError, OverflowError):
        return None
    return price if 0 <= price < math.inf else None


_NUMBERS = _plain_or(_object(dict.fromkeys(("p50", "p75", "p90", "p99"), _plain)))

# `provider` selects the provider, and so the price. The service adds the reserved price as
# `max_price`: see `upstream.UpstreamJob`.
_PROVIDER = _object(
    {
        "order": _each(_plain),
        "only": _each(_plain),
        "ignore": _each(_plain),
        "sort": _text_or(_object({"by": _plain, "partition": _plain}), "an object"),
        "quantizations": _each(_plain),
        "allow_fallbacks": _plain,
        "require_parameters": _plain,
        "data_collection": _plain,
        "zdr": _plain,
        "enforce_distillable_text": _plain,
        "preferred_min_throughput": _NUMBERS,
        "preferred_max_latency": _NUMBERS,
        "max_price": _max_price,
    }
)

# Thinking is part of the answer, and ends with its limit: see `request.ChatRequest.limits`.
_THINKING = _object(
    dict.fromkeys(
        ("type", "budget_tokens", "token_budget", "display", "clear_thinking", "keep"), _plain
    )
)

# Ollama's own options. Only the operator may set those for loading a model, so they are refused.
_OLLAMA_OPTIONS = _object(
    {
        **dict.fromkeys(
            (
                *("num_predict", "num_ctx", "num_keep", "seed", "temperature", "top_k", "top_p"),
                *("min_p", "typical_p", "tfs_z", "repeat_last_n", "repeat_penalty"),
                *("presence_penalty", "frequency_penalty", "penalize_newline"),
                *("mirostat", "mirostat_eta", "mirostat_tau"),
            ),
            _plain,
        ),
        "stop": _text_or(_each(_plain), "an array of strings"),
    }
)

# vLLM passes these to the chat template, where they override vLLM's own values. A client's template
# could repeat the prompt without end (CVE-2025-61620), and so could a client's messages. A template
# writes tokens such as `eos_token` behind each message.
_TEMPLATE_REFUSED = (
    *("chat_template", "tokenize", "messages", "conversation", "conversations", "tools"),
    *("tokenizer", "return_dict", "return_tensors", "return_assistant_tokens_mask"),
)


def _template_arguments(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise invalid_request(f"`{name}` must be an object.")
    for key, inner in cast("dict[str, Any]", value).items():
        is_token = key.endswith(("_token", "_tokens")) and isinstance(inner, (str, list, dict))
        if key in _TEMPLATE_REFUSED or is_token:
            raise _not_allowed(f"{name}.{key}", "it replaces the input of the template")


# Gemini's own fields: ai.google.dev/gemini-api/docs/openai. Thoughts are part of the answer.
_GOOGLE = _object(
    {
        "thinking_config": _object(
            dict.fromkeys(("thinking_budget", "thinking_level", "include_thoughts"), _plain)
        ),
        "thought_tag_marker": _plain,
        "safety_settings": _safe_json,
        **dict.fromkeys(
            ("response_modalities", "image_config"), _held("an image or audio has its own price")
        ),
    }
)


def _plain_template_arguments(name: str, value: Any) -> None:
    _map(name, value)
    _template_arguments(name, value)


def _extra_body(name: str, value: Any) -> Found | None:
    # Allow only fields that cost nothing, because LiteLLM reads any field in it.
    if not fields_of(value) or not fields_of(value).keys() <= _IN_EXTRA_BODY.keys():
        raise _foreign(name, name)
    return _object(_IN_EXTRA_BODY)(name, value)


class Field(NamedTuple):
    """A row of the table.

    Attributes:
        kind: the highest kind that its value can have.
        rule: checks the value.
        note: a description for the documentation. Fields with the same kind and note share a line.
    """

    kind: Kind
    rule: Rule
    note: str


def _rows(kind: Kind, note: str, fields: Mapping[str, Rule]) -> dict[str, Field]:
    return {name: Field(kind, rule, note) for name, rule in fields.items()}


def _plain_rows(kind: Kind, note: str, *names: str) -> dict[str, Field]:
    return _rows(kind, note, dict.fromkeys(names, _plain))


def _held_row(name: str, because: str, *free: Any, shape: Rule = _safe_json) -> dict[str, Field]:
    note = because
    if free:
        *others, last = (f"`{one if isinstance(one, str) else json.dumps(one)}`" for one in free)
        listed = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        note = f"{because}; {listed} free"
    return {name: Field(Kind.HELD, _held(because, *free, shape=shape), note)}


def _refused_row(name: str, because: str) -> dict[str, Field]:
    return {name: Field(Kind.REFUSED, _refused(because), because)}


_LIST_OF_PLAIN = _each(_plain)


def _provider_options(name: str, value: Any) -> Found | None:
    # Vercel's gateway places cache breakpoints for `"caching": "auto"`. LiteLLM has a field with
    # this name, too, and stores answers for it.
    gateway = fields_of(fields_of(value).get("gateway"))
    if gateway.get("caching") == "auto":
        rest = {field: inner for field, inner in gateway.items() if field != "caching"}
        value = {**value, "gateway": rest}
    return _OF_GATEWAY(name, value)


_OF_GATEWAY = _held("its fields choose providers and tools")

#: OpenRouter's plugins that cost nothing: openrouter.ai/docs/guides/features/plugins. They repair
#: the JSON of an answer, shorten a long prompt, and read PDF files. Each has its allowed options,
#: because another option can choose a model.
_FREE_PLUGINS: Mapping[str, Rule] = {
    "response-healing": _object({"id": _plain, "enabled": _plain}),
    "context-compression": _object(
        {"id": _plain, "enabled": _plain, "engine": _only("middle-out")}
    ),
    "file-parser": _object(
        {
            "id": _plain,
            "enabled": _plain,
            "pdf": _object(
                {
                    "engine": _held(
                        "this engine has its own price",
                        *("cloudflare-ai", "pdf-text", "native"),
                        shape=_text,
                    )
                }
            ),
        }
    ),
}
_PRICED_PLUGIN = _held("plugins have their own prices")


def _plugin(name: str, value: Any) -> Found | None:
    fields = fields_of(value)
    if fields.get("enabled") is False:
        return _safe_json(name, value)
    kind = fields.get("id")
    free = _FREE_PLUGINS.get(kind) if isinstance(kind, str) else None
    return (free or _PRICED_PLUGIN)(name, value)


_PLUGINS = _each(_plugin)


def _logit_bias(name: str, value: Any) -> Found | None:
    # llama.cpp also reads pairs: `[[15043, -1.0]]`.
    return _each(_LIST_OF_PLAIN)(name, value) if isinstance(value, list) else _map(name, value)


def _metadata(name: str, value: Any) -> None:
    """An object with the client's own keys."""
    if not isinstance(value, dict):
        raise invalid_request(f"`{name}` must be an object.")
    for key, inner in cast("dict[str, Any]", value).items():
        # LiteLLM keeps objects of its own here, such as `model_info` and `headers`.
        if isinstance(inner, dict) and foreign_fields.is_foreign(key):
            raise _foreign(f"{name}.{key[:64]}", key[:64])
    _client_keys(name, value)


_TOKENS = "how tokens are chosen and reported"
_THINKING_NOTE = "how much the model thinks and writes, within the limit of the answer"

#: Every field that a request may have.
REQUEST: Mapping[str, Field] = {
    # Fields that the reservation counts.
    "model": Field(
        Kind.COUNTED,
        _text,
        "the price of the model. A preset (`@preset/…`) is held. A model that searches or calls "
        "other models by itself is also held. A model without a fixed price, such as a router, is "
        "held if the upstream reports the cost of each call, and refused otherwise",
    ),
    "messages": Field(
        Kind.COUNTED,
        _each(_message),
        "the prompt; held if it writes a cache for an hour or longer. `tools` in a message follow "
        "the rule of `tools`",
    ),
    "models": Field(
        Kind.COUNTED, _each(_plain), "fallbacks; the price of the most expensive model counts"
    ),
    "tools": Field(
        Kind.COUNTED,
        _each(_tool),
        "part of the prompt; a tool that the provider runs is held; a tool that reads the "
        "operator's data (`file_search`, `mcp`) is refused",
    ),
    **_rows(
        Kind.COUNTED,
        "part of the prompt",
        {
            "functions": _each(_FUNCTION),
            "tool_choice": _text_or(_tool_choice, "an object that names a tool"),
            "function_call": _text_or(_NAMED, "an object that names a function"),
            "response_format": _RESPONSE_FORMAT,
        },
    ),
    "reasoning": Field(
        Kind.COUNTED, _REASONING, "part of the prompt; a `mode` other than `standard` is held"
    ),
    **_rows(
        Kind.COUNTED,
        "arguments of the template, part of the prompt; names that replace the template or its "
        "input are refused",
        dict.fromkeys(("chat_template_kwargs", "chat_template_args"), _template_arguments),
    ),
    **_rows(
        Kind.COUNTED,
        "a format of the answer, counted as part of the prompt",
        {
            **dict.fromkeys(
                ("guided_json", "guided_choice", "structured_outputs"), _plain_or(_json)
            ),
            **dict.fromkeys(("json_schema", "format", "structural_tag"), _plain_or(_json)),
            **dict.fromkeys(("guided_regex", "guided_grammar", "regex", "ebnf", "grammar"), _text),
            "output_config": _object({"effort": _plain, "format": _json}),
            "output_format": _json,
            # NVIDIA NIM's.
            "nvext": _object(
                {
                    **dict.fromkeys(
                        ("guided_json", "guided_choice", "guided_regex", "guided_grammar"),
                        _plain_or(_json),
                    ),
                    "max_thinking_tokens": _plain,
                }
            ),
        },
    ),
    "documents": Field(Kind.COUNTED, _each(_json), "part of the prompt"),
    "translation_options": Field(Kind.COUNTED, _safe_json, "part of the prompt"),
    "google": Field(
        Kind.HELD,
        _GOOGLE,
        "Gemini's options; those for an image or audio are held, others are free",
    ),
    "extra_body": Field(
        Kind.HELD,
        _extra_body,
        "Gemini's options in an object `google`, as its clients send them. The free fields about "
        "tokens and thinking are also free in `extra_body`, and `chat_template_kwargs` with plain "
        "values is counted",
    ),
    **_plain_rows(
        Kind.COUNTED,
        "the limit of the answer; the lower of the two counts; with `-1`, the service chooses it",
        *("max_tokens", "max_completion_tokens"),
    ),
    "options": Field(
        Kind.COUNTED,
        _OLLAMA_OPTIONS,
        "Ollama's options; `num_predict` is another name of `max_tokens`; options that load a "
        "model (`num_gpu`, …) are refused",
    ),
    "n": Field(Kind.COUNTED, _plain, "the number of answers; `max_tokens` applies to each"),
    "thinking": Field(Kind.COUNTED, _THINKING, "part of the answer, within its limit"),
    "thinking_budget": Field(Kind.COUNTED, _plain, "part of the answer, within its limit"),
    "provider": Field(
        Kind.COUNTED,
        _PROVIDER,
        "how OpenRouter chooses a provider. In this object, the service sets `max_price` to the "
        "prices of the model. If one of your own prices in `max_price` is lower, it keeps yours",
    ),
    "cache_control": Field(
        Kind.COUNTED,
        _CACHE_CONTROL,
        "a cache for five minutes is counted, a cache for an hour is held",
    ),
    # How the answer is sent.
    "stream": Field(Kind.FREE, _plain, "how the answer is sent"),
    # OpenRouter sends the body that it sends to the model's provider, in one more chunk.
    "debug": Field(Kind.FREE, _object({"echo_upstream_body": _plain}), "how the answer is sent"),
    "stream_options": Field(
        Kind.FREE,
        _object(
            {
                "include_usage": _plain,
                "include_obfuscation": _plain,
                "continuous_usage_stats": _plain,
                "chunk_include_usage": _plain,
            }
        ),
        "how the answer is sent",
    ),
    "usage": Field(Kind.FREE, _object({"include": _plain}), "how the answer is sent"),
    # The names of more data in an answer of OpenAI's Responses API, as opencode sends them.
    "include": Field(Kind.FREE, _LIST_OF_PLAIN, "how the answer is sent"),
    **_plain_rows(
        Kind.FREE,
        "how the answer is sent",
        *("incremental_output", "result_format", "stream_mode", "tool_stream", "raw_output"),
        *("parse_tool_calls", "timings_per_token", "return_progress", "perf_metrics_in_response"),
        *("return_cached_tokens_details", "return_prompt_text", "return_token_offsets"),
        *("stream_interval", "return_meta_info", "return_prompt_token_ids"),
    ),
    **_rows(
        Kind.FREE,
        "what the provider filters",
        {
            **dict.fromkeys(("safety_settings", "asr_options", "sensitive_word_check"), _safe_json),
            **dict.fromkeys(("safety_mode", "mask_sensitive_info", "watermark_enabled"), _plain),
        },
    ),
    # How tokens are chosen and reported.
    **_plain_rows(
        Kind.FREE,
        _TOKENS,
        *("temperature", "top_p", "top_k", "top_a", "min_p", "typical_p"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty"),
        *("repeat_penalty", "mirostat", "mirostat_eta", "mirostat_tau"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "seed", "random_seed"),
        *("min_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
        *("spaces_between_special_tokens", "truncate_prompt_tokens", "return_token_ids"),
        *("return_tokens_as_token_ids", "guided_decoding_backend", "guided_whitespace_pattern"),
        # llama.cpp, KoboldCpp, text-generation-webui, TabbyAPI, SGLang
        *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_range"),
        *("xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent"),
        *("dynatemp_low", "dynatemp_high", "dynamic_temperature", "smoothing_factor"),
        *("smoothing_curve", "temperature_last", "repeat_last_n", "repetition_penalty_range"),
        *("no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff"),
        *("top_n_sigma", "tfs_z", "tfs", "typical", "rep_pen", "min_keep", "penalize_nl"),
        *("mirostat_mode", "mirostat_target", "mirostat_lr", "do_sample", "n_probs", "n_keep"),
        *("n_discard", "n_indent", "post_sampling_probs", "return_tokens", "t_max_predict_ms"),
        *("no_stop_trim", "return_hidden_states", "ban_eos_token", "typ_p", "adaptive_target"),
        *("adaptive_decay", "backend_sampling", "watermarking", "truncation_side"),
    ),
    **_rows(
        Kind.FREE,
        _TOKENS,
        {
            "logit_bias": _logit_bias,
            **dict.fromkeys(
                (
                    *("samplers", "sampler_priority", "sampler_order", "dry_sequence_breakers"),
                    *("stop_sequences", "stop_regex", "banned_strings", "banned_tokens"),
                ),
                _plain_or(_LIST_OF_PLAIN),
            ),
            **dict.fromkeys(("vllm_xargs", "repetition_detection"), _safe_json),
            "stop": _text_or(_LIST_OF_PLAIN, "an array of strings"),
            "stop_token_ids": _LIST_OF_PLAIN,
            "allowed_token_ids": _LIST_OF_PLAIN,
            "logprob_token_ids": _LIST_OF_PLAIN,
            "bad_words": _LIST_OF_PLAIN,
        },
    ),
    **_plain_rows(
        Kind.FREE,
        "how tools are called",
        *("parallel_tool_calls", "disable_tool_validation"),
    ),
    # How much the model thinks and writes, within the limit.
    **_plain_rows(
        Kind.FREE,
        _THINKING_NOTE,
        *("include_reasoning", "reasoning_format", "verbosity", "reasoning_budget"),
        *("enable_thinking", "think", "thinking_token_budget", "separate_reasoning"),
        *("stream_reasoning", "prompt_mode", "disable_reasoning", "clear_thinking"),
        *("preserve_thinking", "reasoning_history", "reasoning_split", "reasoning_in_content"),
        *("thinking_forced_open", "thinking_budget_tokens", "reasoning_control"),
        *("max_thinking_tokens", "min_thinking_tokens", "reasoning_summary", "reasoningSummary"),
        "enable_reasoning",
    ),
    # LiteLLM also takes an object, with `effort` and `summary`.
    "reasoning_effort": Field(
        Kind.FREE,
        _plain_or(_object(dict.fromkeys(("effort", "summary"), _plain))),
        _THINKING_NOTE,
    ),
    # How the prompt is formatted.
    **_plain_rows(
        Kind.FREE,
        "how the prompt is formatted",
        *("echo", "add_generation_prompt", "continue_final_message", "add_special_tokens"),
        *("safe_prompt", "context_length_exceeded_behavior", "prompt_truncate_len"),
        *("truncate", "shift", "document_image_limit", "document_page_limit", "num_ctx"),
    ),
    # Older versions of Home Assistant send this field of `provider` here. OpenRouter ignores it.
    "require_parameters": Field(Kind.FREE, _plain, "which providers may answer"),
    "transforms": Field(
        Kind.FREE,
        _only([], ["middle-out"]),
        'shortens a long prompt; any value except `[]` and `["middle-out"]` is refused',
    ),
    # Caching and grouping at the upstream.
    **_plain_rows(
        Kind.FREE,
        "caching and grouping at the upstream",
        *("user", "safety_identifier", "session_id", "prompt_cache_key", "promptCacheKey"),
        *("prompt_cache_retention", "cache_salt", "cache_prompt", "prompt_cache_max_len"),
        *("prompt_cache_isolation_key", "id_slot"),
        *("request_id", "rid", "user_id"),
    ),
    # Azure OpenAI's. Microsoft's security software shows it to the operator.
    "user_security_context": Field(
        Kind.FREE,
        _object(
            dict.fromkeys(
                ("application_name", "end_user_id", "end_user_tenant_id", "source_ip"), _plain
            )
        ),
        "names of the app and its user, for the operator's security software",
    ),
    "store": Field(
        Kind.FREE, _plain, "the upstream keeps the answer, in the account whose key is used"
    ),
    "metadata": Field(
        Kind.FREE, _metadata, "your own keys, except those that could redirect the call"
    ),
    "trace": Field(
        Kind.FREE,
        _client_keys,
        "names for the operator's tracing, except those that could redirect the call",
    ),
    **_plain_rows(
        Kind.FREE,
        "how long a model stays loaded, and its speed",
        *("keep_alive", "ttl", "draft_model"),
        *("speculative.n_max", "speculative.n_min", "speculative.p_min"),
    ),
    # Filters of a search. The cost of the search itself is in the model's price.
    **_rows(
        Kind.FREE,
        "filters the results of a search",
        {
            **dict.fromkeys(
                (
                    *("search_domain_filter", "search_language_filter", "include_domains"),
                    *("exclude_domains", "image_domain_filter", "image_format_filter"),
                ),
                _LIST_OF_PLAIN,
            ),
            **dict.fromkeys(
                (
                    *("search_recency_filter", "search_after_date_filter", "disable_search"),
                    *("search_before_date_filter", "last_updated_after_filter"),
                    *("last_updated_before_filter", "language_preference"),
                    *("enable_search_classifier", "safe_search", "return_citations"),
                ),
                _plain,
            ),
            "citation_options": _plain_or(_object({"mode": _plain})),
        },
    ),
    # Fields whose cost has no bound.
    "plugins": Field(
        Kind.HELD,
        _PLUGINS,
        "plugins have their own prices; `response-healing`, `context-compression`, `file-parser` "
        "with a free engine, and plugins that are off are free",
    ),
    **_held_row("web_search_options", "a search has its own price"),
    **_held_row("search_settings", "a search has its own price"),
    **_held_row("enable_search", "a search has its own price"),
    **_held_row("search_options", "a search has its own price"),
    **_held_row("num_search_results", "a search has its own price"),
    **_held_row("venice_parameters", "a search has its own price"),
    **_held_row("search_parameters", "a search has its own price", {"mode": "off"}),
    **_held_row("search_mode", "a search has its own price", "web"),
    **_held_row("return_images", "the results have their own price"),
    **_held_row("return_related_questions", "the results have their own price"),
    **_held_row("media_response", "the results have their own price"),
    **_held_row("stop_server_tools_when", "it sets how long the provider's tools run"),
    **_held_row("max_tool_calls", "it sets how long the provider's tools run"),
    **_held_row("compound_custom", "it chooses models and tools"),
    **_held_row("prediction", "wrong predictions are billed beyond the limit of the answer"),
    **_held_row(
        "service_tier",
        "another tier has another price",
        # `auto` is the same as leaving out the field.
        *("auto", "default", "standard", "standard_only", "on_demand", "flex"),
        shape=_text,
    ),
    **_held_row(
        "speed",
        "another speed has another price",
        "standard",
        shape=_text,
    ),
    **_held_row("inference_geo", "another region has another price", "global", shape=_text),
    **_held_row("route", "a router chooses the price"),
    **_held_row("preset", "its fields are not visible to the service", shape=_text),
    **_held_row(
        "modalities",
        "an image or audio has its own price",
        ["text"],
        shape=_LIST_OF_PLAIN,
    ),
    **_held_row("audio", "audio has its own price"),
    **_held_row("image_config", "an image has its own price"),
    **_held_row("mm_processor_kwargs", "an image has its own price"),
    **_held_row("media_io_kwargs", "an image has its own price"),
    **_held_row("moderation", "it calls another model"),
    **_held_row("safety_model", "it calls another model"),
    **_held_row("vl_high_resolution_images", "an image has its own price"),
    **_held_row("enable_code_interpreter", "the provider's tools have their own price"),
    **_held_row("priority", "another priority can have another price", 0, shape=_plain),
    **_held_row("tags", "a router can use it to choose the price"),
    "providerOptions": Field(Kind.HELD, _provider_options, "its fields choose providers and tools"),
    **_held_row("provider_options", "its fields choose providers and tools"),
    **_held_row("betas", "a beta may have its own price"),
    **_held_row("anthropic_beta", "a beta may have its own price"),
    "prompt_cache_options": Field(
        Kind.HELD,
        _OPENAI_CACHE,
        "OpenAI's cache; for 30 minutes it is counted, a longer one is held",
    ),
    **_held_row("context_management", "writing a cache has its own price"),
    **_held_row("best_of", "each attempt is billed", 1, shape=_plain),
    **_held_row("use_beam_search", "each attempt is billed", shape=_plain),
    # Fields that the service does not support.
    **_refused_row("prompt", "this is a chat API: use `messages`"),
    **_refused_row("input", "this is a chat API: use `messages`"),
    **_refused_row("system", "use a message with the role `system`"),
    **_refused_row("instructions", "use a message with the role `system`"),
    **_refused_row("n_predict", "use `max_tokens`"),
    **_refused_row("max_new_tokens", "use `max_tokens`"),
    **_refused_row("max_output_tokens", "use `max_tokens`"),
    **_refused_row("max_gen_len", "use `max_tokens`"),
    **_refused_row("max_length", "use `max_tokens`"),
    **_refused_row("chat_template", "a template can repeat the prompt any number of times"),
    **_refused_row("background", "an answer that comes later cannot be billed"),
    **_refused_row("deferred", "an answer that comes later cannot be billed"),
}

# Gemini's clients send `extra_body` as a field. In JavaScript, others do so by mistake, because in
# Python it is an option of the client.
_IN_EXTRA_BODY: Mapping[str, Rule] = {
    **{name: row.rule for name, row in REQUEST.items() if row.note in (_TOKENS, _THINKING_NOTE)},
    "google": _GOOGLE,
    "thinking": _THINKING,
    "thinking_budget": _plain,
    "chat_template_kwargs": _plain_template_arguments,
}

_request = _object({name: field.rule for name, field in REQUEST.items()})
