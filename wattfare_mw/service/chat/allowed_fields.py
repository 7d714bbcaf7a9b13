"""What may stand in an inference request: one table, and a rule for each field.

A reservation is a promise about a cost, so only what cannot cost more than is reserved goes up.
There are three kinds of fields: those that cost nothing of their own, those that the service
counts, and those whose price nobody can bound beforehand (an image by its tiles, a search by its
hits, another model by its price), which are refused by their name. **A field that is not in the
table is refused, too, by its name**: an API grows fields that cost money faster than anyone reads
its news, and what is passed on unread is paid for unread.

Sources: the request bodies of OpenAI's and OpenRouter's chat completions. ``null`` is as good as
absent everywhere. The fields that :mod:`.chat` reads (``messages``, the limits, ``n``, …) have
their values checked there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...errors import invalid_request

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


def _free(name: str, value: Any) -> None:
    """It costs nothing, whatever it says: at most it is part of the prompt, which is counted."""


def _refused(because: str) -> Rule:
    def rule(name: str, value: Any) -> None:
        # Nothing is asked for by these; an empty object can be something with all its defaults.
        if value is not False and value != []:
            raise invalid_request(f"`{name}` is not let through: {because}.")

    return rule


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
            if inner is not None and known is not _free:
                known(prefix + field, inner)

    return rule


def _each(rule: Rule) -> Rule:
    def each(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise invalid_request(f"`{name}` is an array.")
        for place, item in enumerate(cast("list[Any]", value)):
            rule(f"{name}[{place}]", item)

    return each


def _text_or(rule: Rule) -> Rule:
    def either(name: str, value: Any) -> None:
        if not isinstance(value, (str, list)):
            raise invalid_request(f"`{name}` is a string, or an array of parts.")
        if not isinstance(value, str):
            rule(name, value)

    return either


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

_TEXT = _object({"type": _free, "text": _free, "cache_control": _CACHE_CONTROL})
_PART = _of_type(
    {"text": _TEXT, "refusal": _free},
    "its tokens cannot be counted before it is read; this service takes text only",
)

_MESSAGE = _object(
    {
        "role": _free,
        "content": _text_or(_each(_PART)),
        "name": _free,
        "refusal": _free,
        "tool_calls": _each(_of_type({"function": _free, "custom": _free}, "it is no such call")),
        "tool_call_id": _free,
        "function_call": _free,
        "reasoning": _free,
        "reasoning_content": _free,
        "reasoning_details": _free,
        "cache_control": _CACHE_CONTROL,
        "annotations": _free,
        "audio": _refused("audio cannot be bounded"),
        "images": _refused("images cannot be bounded"),
    }
)

_TOOL = _of_type(
    {
        "function": _object({"type": _free, "function": _free, "cache_control": _CACHE_CONTROL}),
        "custom": _object({"type": _free, "custom": _free, "cache_control": _CACHE_CONTROL}),
    },
    "only tools that the app runs itself cost nothing of their own",
)

# Thinking is part of the answer, and ends with its limit: see `chat.ChatRequest.floor`.
_REASONING = _object(
    {"effort": _free, "max_tokens": _free, "exclude": _free, "enabled": _free, "summary": _free}
)

# Where it may go changes the price, so that the price reserved for goes up with it, as
# `max_price`: see `upstream.UpstreamJob`.
_PROVIDER = _object(
    {
        "order": _free,
        "only": _free,
        "ignore": _free,
        "sort": _free,
        "quantizations": _free,
        "allow_fallbacks": _free,
        "require_parameters": _free,
        "data_collection": _free,
        "zdr": _free,
        "enforce_distillable_text": _free,
        "max_price": _refused("this service sets it to the price that it has reserved for"),
    }
)

#: Every field that a request may have.
REQUEST: Mapping[str, Rule] = {
    # Read and counted.
    "model": _free,
    "messages": _each(_MESSAGE),
    "max_tokens": _free,
    "max_completion_tokens": _free,
    "n": _free,
    "stream": _free,
    "stream_options": _object(
        {"include_usage": _free, "include_obfuscation": _free, "continuous_usage_stats": _free}
    ),
    "reasoning": _REASONING,
    "provider": _PROVIDER,
    # Part of the prompt.
    "tools": _each(_TOOL),
    "functions": _free,
    "response_format": _free,
    # How a token is chosen, and what is told of it.
    "temperature": _free,
    "top_p": _free,
    "top_k": _free,
    "top_a": _free,
    "min_p": _free,
    "frequency_penalty": _free,
    "presence_penalty": _free,
    "repetition_penalty": _free,
    "logit_bias": _free,
    "logprobs": _free,
    "top_logprobs": _free,
    "seed": _free,
    "stop": _free,
    "tool_choice": _free,
    "function_call": _free,
    "parallel_tool_calls": _free,
    "structured_outputs": _free,
    # How much is thought and said, within the limit.
    "reasoning_effort": _free,
    "include_reasoning": _free,
    "verbosity": _free,
    # What the upstream keeps or sorts by.
    "user": _free,
    "safety_identifier": _free,
    "session_id": _free,
    "metadata": _free,
    "prompt_cache_key": _free,
    "prompt_cache_retention": _free,
    "usage": _object({"include": _free}),
    # Some of its values cost nothing more.
    "store": _only(False),
    "service_tier": _only("default", "flex"),
    "modalities": _only(["text"]),
    "best_of": _only(1),
    "transforms": _only([], ["middle-out"]),
    # What cannot be bounded.
    "models": _refused("each fallback has a price of its own; name one `model`"),
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
