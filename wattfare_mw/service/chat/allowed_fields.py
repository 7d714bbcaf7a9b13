"""What may stand in an inference request: one table, and a rule for each field.

A reservation is a promise about a cost, so only what cannot cost more than is reserved goes up.
There are three kinds of fields: those that cost nothing of their own, those that the service
counts, and those whose price has no bound beforehand (a search by its hits, a file that is stored
elsewhere), which are refused by their name. **A field that is not in the
table is refused, too, by its name**: an API grows fields that cost money faster than anyone reads
its news, and what is passed on unread is paid for unread. So each object in a request has its
own list of keys, to the last one. Only a schema or a function's arguments may be any JSON.

Sources: the request bodies of OpenAI's and OpenRouter's chat completions. ``null`` is as good as
absent everywhere. The fields that :mod:`.chat` reads (``messages``, the limits, ``n``, …) have
their values checked there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...errors import invalid_request
from . import attachments

#: How many answers one call may ask for: OpenAI's own limit.
MAX_N = 128

Rule = Callable[[str, Any], None]
"""Raises an ``invalid_request`` that names the field, or lets its value pass."""


def check(request: dict[str, Any]) -> None:
    """Let this request's fields through, or refuse the first that cannot be.

    Raises:
        WattfareError: ``invalid_request``, with the field's name.
    """
    _request("", request)


def _plain(name: str, value: Any) -> None:
    """A string, a number or a boolean. It costs nothing, whatever it says: at most it is part of
    the prompt, which is counted."""
    if isinstance(value, (dict, list)):
        raise invalid_request(f"`{name}` is a string, a number or a boolean.")


def _text(name: str, value: Any) -> None:
    """The same, of a string."""
    if not isinstance(value, str):
        raise invalid_request(f"`{name}` is a string.")


def _json(_name: str, _value: Any) -> None:
    """Any JSON: a schema, or the arguments of a function. It is text to the model, whatever keys
    it has, and it is counted as part of the prompt."""


def _refused(because: str) -> Rule:
    def rule(name: str, value: Any) -> None:
        # Nothing is asked for by these; an empty object can be something with all its defaults.
        if value is not False and value != []:
            raise invalid_request(f"`{name}` is not let through: {because}.")

    return rule


def _unbounded(name: str, _value: Any) -> None:
    """What stands elsewhere, so that its size is not known."""
    raise attachments.unbounded(name, "its content is not here; send the data itself")


def _only(*allowed: Any) -> Rule:
    def rule(name: str, value: Any) -> None:
        # `True == 1`, and is another value all the same.
        if not any(type(value) is type(one) and value == one for one in allowed):
            said = " or ".join(json.dumps(one) for one in allowed)
            raise invalid_request(f"`{name}` may be {said} here: the rest cannot be bounded.")

    return rule


def _object(rules: Mapping[str, Rule]) -> Rule:
    def rule(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise invalid_request(f"`{name}` is an object.")
        prefix = f"{name}." if name else ""
        for field, inner in cast("dict[str, Any]", value).items():
            known = rules.get(field)
            if known is None:
                raise invalid_request(
                    f"`{prefix}{field[:64]}` is no field that this service knows, "
                    "so that its cost cannot be bounded."
                )
            if inner is not None:
                known(prefix + field, inner)

    return rule


def _each(rule: Rule) -> Rule:
    def each(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise invalid_request(f"`{name}` is an array.")
        for place, item in enumerate(cast("list[Any]", value)):
            rule(f"{name}[{place}]", item)

    return each


def _text_or(rule: Rule, otherwise: str) -> Rule:
    def either(name: str, value: Any) -> None:
        if not isinstance(value, str):
            if not isinstance(value, (dict, list)):
                raise invalid_request(f"`{name}` is a string, or {otherwise}.")
            rule(name, value)

    return either


def _map(name: str, value: Any) -> None:
    """An object of any keys, with a plain value each."""
    if not isinstance(value, dict):
        raise invalid_request(f"`{name}` is an object.")
    for key, inner in cast("dict[str, Any]", value).items():
        _plain(f"{name}.{key[:64]}", inner)


def _of_type(types: Mapping[str, Rule], otherwise: str) -> Rule:
    """An object whose ``type`` says which it is; any type but these is refused by its name."""

    def rule(name: str, value: Any) -> None:
        kind: Any = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None
        known = types.get(kind) if isinstance(kind, str) else None
        if known is None:
            said = f"of type `{kind[:64]}`" if isinstance(kind, str) else "without a type"
            raise invalid_request(f"`{name}` {said} is not let through: {otherwise}.")
        known(name, value)

    return rule


# A cache that is written for five minutes is priced in every list; for an hour, in hardly any.
_CACHE_CONTROL = _object({"type": _only("ephemeral"), "ttl": _only("5m")})

# What bounds an image, a file and audio is read in :mod:`.attachments`.
_MEDIA = {"type": _plain, "cache_control": _CACHE_CONTROL}
_IMAGE = {
    **_MEDIA,
    "image_url": _text_or(_object({"url": _text, "detail": _plain, "format": _plain}), "an object"),
    "detail": _plain,
    "file_id": _unbounded,
}
_SOURCE = _object(
    {"type": _plain, "media_type": _plain, "data": _text, "url": _text, "file_id": _unbounded}
)
_FILE = {"file_data": _text, "filename": _plain, "format": _plain}
_STORED = {"file_id": _unbounded, "file_url": _unbounded}
_SOUND = {"data": _text, "format": _plain}
_IMAGE_PARTS = {
    "image_url": _object(_IMAGE),
    "input_image": _object(_IMAGE),
    "image": _object({**_MEDIA, "source": _SOURCE, "image": _text, "mediaType": _plain}),
}
_PART = _of_type(
    {
        "text": _object({"type": _plain, "text": _text, "cache_control": _CACHE_CONTROL}),
        "refusal": _object({"type": _plain, "refusal": _text}),
        **_IMAGE_PARTS,
        "document": _object({**_MEDIA, "source": _SOURCE, "title": _plain, "context": _plain}),
        "file": _object({**_MEDIA, "file": _object({**_FILE, **_STORED})}),
        "input_file": _object({**_MEDIA, **_FILE, **_STORED}),
        "input_audio": _object({**_MEDIA, "input_audio": _object(_SOUND)}),
    },
    "its tokens cannot be counted before it is read",
)
#: An image that a model has made, and an app sends back.
_MADE_IMAGE = _of_type(
    {"image_url": _object({**_IMAGE, "index": _plain})}, "its tokens cannot be counted"
)

_NAMED = _object({"name": _plain})

# What a model made before, and an app sends back.
_CALL = {
    "id": _plain,
    "type": _plain,
    "index": _plain,
    # Gemini's signature of a thought, which it wants back.
    "extra_content": _object({"google": _object({"thought_signature": _plain})}),
}
_TOOL_CALL = _of_type(
    {
        "function": _object({**_CALL, "function": _object({"name": _plain, "arguments": _json})}),
        "custom": _object({**_CALL, "custom": _object({"name": _plain, "input": _plain})}),
    },
    "it is no such call",
)
_THOUGHT = _object(
    dict.fromkeys(("type", "id", "index", "format", "text", "summary", "data", "signature"), _plain)
)
_ANNOTATION = _of_type(
    {
        "url_citation": _object(
            {
                "type": _plain,
                "url_citation": _object(
                    dict.fromkeys(("url", "title", "content", "start_index", "end_index"), _plain)
                ),
            }
        )
    },
    "it may hold more than text",
)

_MESSAGE = _object(
    {
        "role": _text,
        "content": _text_or(_each(_PART), "an array of parts"),
        "name": _plain,
        "refusal": _plain,
        "tool_calls": _each(_TOOL_CALL),
        "tool_call_id": _plain,
        "function_call": _object({"name": _plain, "arguments": _json}),
        "reasoning": _plain,
        "reasoning_content": _plain,
        "reasoning_details": _each(_THOUGHT),
        "cache_control": _CACHE_CONTROL,
        "annotations": _each(_ANNOTATION),
        "audio": _refused("audio cannot be bounded"),
        "images": _each(_MADE_IMAGE),
    }
)

_FUNCTION = _object({"name": _plain, "description": _plain, "parameters": _json, "strict": _plain})
_GRAMMAR = _object({"syntax": _plain, "definition": _plain})
_CUSTOM = _object(
    {
        "name": _plain,
        "description": _plain,
        # OpenAI's own shape, and the flat one of its other API.
        "format": _object(
            {"type": _plain, "grammar": _GRAMMAR, "syntax": _plain, "definition": _plain}
        ),
    }
)
_TOOL = _of_type(
    {
        "function": _object(
            {"type": _plain, "function": _FUNCTION, "cache_control": _CACHE_CONTROL}
        ),
        "custom": _object({"type": _plain, "custom": _CUSTOM, "cache_control": _CACHE_CONTROL}),
    },
    "only tools that the app runs itself cost nothing of their own",
)
_CHOSEN_TOOL = {
    "function": _object({"type": _plain, "function": _NAMED}),
    "custom": _object({"type": _plain, "custom": _NAMED}),
}
_TOOL_CHOICE = _of_type(
    {
        **_CHOSEN_TOOL,
        "allowed_tools": _object(
            {
                "type": _plain,
                "allowed_tools": _object(
                    {"mode": _plain, "tools": _each(_of_type(_CHOSEN_TOOL, "it is no tool"))}
                ),
            }
        ),
    },
    "only tools that the app runs itself cost nothing of their own",
)

_RESPONSE_FORMAT = _object(
    {
        "type": _plain,
        "json_schema": _object(
            {"name": _plain, "description": _plain, "schema": _json, "strict": _plain}
        ),
        "schema": _json,
        "grammar": _plain,
    }
)

# Thinking is part of the answer, and ends with its limit: see `chat.ChatRequest.floor`.
_REASONING = _object(
    dict.fromkeys(("effort", "max_tokens", "exclude", "enabled", "summary"), _plain)
)

# Where it may go changes the price, so that the price reserved for goes up with it, as
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
        "max_price": _refused("this service sets it to the price that it has reserved for"),
    }
)

#: Every field that a request may have.
REQUEST: Mapping[str, Rule] = {
    # Read and counted.
    "model": _plain,
    "messages": _each(_MESSAGE),
    "max_tokens": _plain,
    "max_completion_tokens": _plain,
    "n": _plain,
    "stream": _plain,
    "stream_options": _object(
        {"include_usage": _plain, "include_obfuscation": _plain, "continuous_usage_stats": _plain}
    ),
    "reasoning": _REASONING,
    "provider": _PROVIDER,
    # Part of the prompt.
    "tools": _each(_TOOL),
    "functions": _each(_FUNCTION),
    "response_format": _RESPONSE_FORMAT,
    # How a token is chosen, and what is told of it.
    "temperature": _plain,
    "top_p": _plain,
    "top_k": _plain,
    "top_a": _plain,
    "min_p": _plain,
    "frequency_penalty": _plain,
    "presence_penalty": _plain,
    "repetition_penalty": _plain,
    "logit_bias": _map,
    "logprobs": _plain,
    "top_logprobs": _plain,
    "seed": _plain,
    "stop": _text_or(_each(_plain), "an array of strings"),
    "tool_choice": _text_or(_TOOL_CHOICE, "an object that names a tool"),
    "function_call": _text_or(_NAMED, "an object that names a function"),
    "parallel_tool_calls": _plain,
    "structured_outputs": _plain,
    # How much is thought and said, within the limit.
    "reasoning_effort": _plain,
    "include_reasoning": _plain,
    "verbosity": _plain,
    # What the upstream keeps or sorts by.
    "user": _plain,
    "safety_identifier": _plain,
    "session_id": _plain,
    "metadata": _map,
    "prompt_cache_key": _plain,
    "prompt_cache_retention": _plain,
    "usage": _object({"include": _plain}),
    # Some of its values cost nothing more.
    "store": _only(False),
    "service_tier": _only("default", "flex"),
    "modalities": _only(["text"]),
    "best_of": _only(1),
    "transforms": _only([], ["middle-out"]),
    # Fallbacks: the dearest of them is reserved for.
    "models": _each(_plain),
    # What cannot be bounded.
    "route": _refused("a router chooses the price"),
    "preset": _refused("it holds fields that cannot be seen from here"),
    "plugins": _refused("they have prices of their own"),
    "web_search_options": _refused("a search has a price of its own"),
    "prediction": _refused("what is predicted wrongly is billed beyond the limit"),
    "audio": _refused("audio cannot be bounded"),
    "image_config": _refused("images cannot be bounded"),
    "moderation": _refused("it asks another model"),
    "prompt_cache_options": _refused("writing a cache has a price of its own"),
    "prompt": _refused("this is a chat: use `messages`"),
}

_request = _object(REQUEST)
