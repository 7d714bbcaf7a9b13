"""What may stand in an inference request: one table, and a rule for each field.

A reservation is a promise about a cost, so only what cannot cost more than is reserved goes up.
There are three kinds of fields: those that cost nothing of their own, those that the service
counts, and those whose price nobody can bound beforehand (an image by its tiles, a search by its
hits, another model by its price), which are refused by their name. **A field that is not in the
table is refused, too, by its name**: an API grows fields that cost money faster than anyone reads
its news, and what is passed on unread is paid for unread. So each object in a request has its
own list of keys, to the last one. Only a schema or a function's arguments may be any JSON. What
libraries keep in messages is let through by a rule of its own: see :mod:`.kept_fields`.

Sources: the request bodies of OpenAI's and OpenRouter's chat completions. ``null`` is as good as
absent everywhere. The fields that :mod:`.chat` reads (``messages``, the limits, ``n``, …) have
their values checked there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...errors import invalid_request
from . import kept_fields

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


def _beside(rules: Mapping[str, Rule], *, made: bool = True) -> Rule:
    """An object with these fields, and what libraries keep beside them.

    Args:
        made: has a model made it?
    """

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            raise invalid_request(f"`{name}` is an object.")
        found: Any = None
        for field, inner in cast("dict[str, Any]", value).items():
            if inner is None:
                continue
            known, where = rules.get(field), f"{name}.{field[:64]}"
            if known is not None:
                more = known(where, inner)
            else:
                more = kept_fields.check(where, inner, _CACHE_CONTROL, made=made)
            found = found if found is not None else more
        return found

    return rule


# What a model has thought, said or called before, as parts: Mistral's, Anthropic's, and those of
# OpenAI's other API. Each is text to the next model.
_SAID = ("thinking", "redacted_thinking", "reasoning", "output_text", "input_text")


def _parts(*, made: bool) -> Rule:
    """One part of a message. ``made``: by a model."""

    def part(rules: Mapping[str, Rule]) -> Rule:
        return _beside({"type": _plain, "cache_control": _CACHE_CONTROL, **rules}, made=made)

    return _of_type(
        {
            "text": part({"text": _text}),
            "refusal": part({"refusal": _text}),
            **dict.fromkeys(_SAID, part({})),
            "tool_use": part({"name": _plain, "input": _json}),
        },
        "its tokens cannot be counted before it is read; this service takes text only",
    )


_NAMED = _object({"name": _plain})

# What a model made before, and an app sends back.
_CALLED = _beside({"name": _plain, "arguments": _json})
_CALLS = {
    "function": _beside({"id": _plain, "type": _plain, "function": _CALLED}),
    "custom": _beside(
        {"id": _plain, "type": _plain, "custom": _beside({"name": _plain, "input": _plain})}
    ),
}
_OF_KNOWN_TYPE = _of_type(_CALLS, "it is no such call")


def _tool_call(name: str, value: Any) -> Any:
    # Some libraries leave the type out where there is only one.
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if fields.get("type") is None and isinstance(fields.get("function"), dict):
        return _CALLS["function"](name, value)
    return _OF_KNOWN_TYPE(name, value)


def _annotation(name: str, value: Any) -> Any:
    return kept_fields.check_annotation(name, value, _CACHE_CONTROL)


_IN_MESSAGE: Mapping[str, Rule] = {
    "role": _text,
    "name": _plain,
    "refusal": _plain,
    "tool_calls": _each(_tool_call),
    "tool_call_id": _plain,
    "function_call": _CALLED,
    "cache_control": _CACHE_CONTROL,
    "annotations": _each(_annotation),
    "audio": _refused("what an earlier answer said cannot be bounded; send its transcript"),
    "images": _refused("images cannot be bounded"),
}


def _messages(*, made: bool) -> Rule:
    """A message. ``made``: by a model."""
    content = _text_or(_each(_parts(made=made)), "an array of parts")
    return _beside({**_IN_MESSAGE, "content": content}, made=made)


_MADE_BY_MODEL, _MADE_BY_APP = _messages(made=True), _messages(made=False)


def _message(name: str, value: Any) -> Any:
    role: Any = cast("dict[str, Any]", value).get("role") if isinstance(value, dict) else None
    return (_MADE_BY_MODEL if role == "assistant" else _MADE_BY_APP)(name, value)


def _of_tool(rules: Mapping[str, Rule], *, plain: bool) -> Rule:
    """A tool, or the function in it, and what libraries keep beside.

    Args:
        plain: only plain values are kept. Some APIs name a tool of the provider's own by a field
            of the tool.
    """

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            raise invalid_request(f"`{name}` is an object.")
        found: Any = None
        for field, inner in cast("dict[str, Any]", value).items():
            if inner is None:
                continue
            known, where = rules.get(field), f"{name}.{field[:64]}"
            if known is not None:
                more = known(where, inner)
                found = found if found is not None else more
            elif kept_fields.is_of_provider(field) or (plain and isinstance(inner, (dict, list))):
                raise invalid_request(
                    f"`{where}` is no field of a tool that this service knows, so that its cost "
                    "cannot be bounded."
                )
        return found

    return rule


_FUNCTION = _of_tool(
    {
        **dict.fromkeys(("name", "description", "strict"), _plain),
        "parameters": _json,
        "cache_control": _CACHE_CONTROL,
    },
    plain=False,
)
#: What Anthropic's SDK and others keep beside a function. Examples are text.
_BESIDE_TOOL: Mapping[str, Rule] = {
    "type": _plain,
    "cache_control": _CACHE_CONTROL,
    "input_examples": _json,
    "metadata": _json,
}
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
        "function": _of_tool({**_BESIDE_TOOL, "function": _FUNCTION}, plain=True),
        "custom": _of_tool({**_BESIDE_TOOL, "custom": _CUSTOM}, plain=True),
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
    "messages": _each(_message),
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
