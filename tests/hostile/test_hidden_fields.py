"""No object of a request may have a key that the table of fields does not list, or one that may
stand for media."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.service import App, Service, chat_body
from support.upstream import Upstream

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import allowed_fields
from wattfare_mw.service.chat import request as chat_request

IMAGE = {"url": "data:image/png;base64,AAAA", "detail": "high"}
CACHE = {"type": "ephemeral", "ttl": "5m"}
FUNCTION = {
    "name": "f",
    "description": "d",
    "strict": True,
    "parameters": {"type": "object", "properties": {"image_url": {"type": "string"}}},
}
#: A request with every object that the table allows.
FULL: dict[str, Any] = {
    "model": "fake/model",
    "messages": [
        {
            "role": "system",
            "content": [{"type": "text", "text": "x", "cache_control": CACHE}],
            "cache_control": CACHE,
        },
        {"role": "user", "content": "x", "name": "ada"},
        {
            "role": "assistant",
            "content": [{"type": "refusal", "refusal": "no"}],
            "refusal": "no",
            "reasoning": "so",
            "reasoning_content": "so",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "so", "signature": "s", "format": "a", "id": "1"}
            ],
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {
                        "url": "u",
                        "title": "t",
                        "content": "c",
                        "start_index": 0,
                        "end_index": 1,
                    },
                }
            ],
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "index": 0,
                    "function": {"name": "f", "arguments": {"image_url": IMAGE}},
                    "extra_content": {"google": {"thought_signature": "s"}},
                },
                {"id": "c2", "type": "custom", "custom": {"name": "f", "input": "x"}},
            ],
            "function_call": {"name": "f", "arguments": "{}"},
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ],
    "max_tokens": 10,
    "n": 1,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "tools": [
        {"type": "function", "function": FUNCTION, "cache_control": CACHE},
        {
            "type": "custom",
            "custom": {
                "name": "c",
                "description": "d",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}},
            },
        },
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    },
    "functions": [FUNCTION],
    "function_call": {"name": "f"},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"image_url": {}}, "strict": True},
    },
    "reasoning": {"effort": "low", "exclude": True},
    "provider": {"order": ["a"], "sort": {"by": "price", "partition": "model"}},
    "stop": ["x"],
    "logit_bias": {"50256": -100},
    "metadata": {"a": "b"},
    "usage": {"include": True},
    "temperature": 0.5,
    "user": "u",
}

Path = tuple[str | int, ...]


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields every value in a request with its path."""
    yield path, value
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


#: The fields whose value may be any JSON. A ``[]`` stands for each item of an array.
FREE_FORM = frozenset(
    {
        "tools[].function.parameters",
        "functions[].parameters",
        "response_format.schema",
        "response_format.json_schema",
        "messages[].tool_calls[].function.arguments",
        "messages[].function_call.arguments",
    }
)
#: Objects in which libraries keep their own fields. Media in them is refused at any depth.
KEEPING = frozenset(
    {
        "messages[]",
        "messages[].content[]",
        "messages[].reasoning_details[]",
        "messages[].annotations[]",
        "messages[].annotations[].url_citation",
        "messages[].tool_calls[]",
        "messages[].tool_calls[].function",
        "messages[].tool_calls[].custom",
        "messages[].tool_calls[].extra_content",
        "messages[].tool_calls[].extra_content.google",
        "messages[].function_call",
    }
)
#: The same for tools: values beside a function are plain, and values inside it are text.
TOOLS = frozenset({"tools[]"})
FUNCTIONS = frozenset({"tools[].function", "functions[]"})
#: The values that may be anything except media.
KEPT = (
    *("messages[].reasoning", "messages[].annotations[]", "messages[].tool_calls[].extra_content"),
    "messages[].tool_calls[].index",
)
#: The fields whose keys the client chooses. In `logit_bias`, each has a plain value.
FREE_KEYS = frozenset({"metadata", "logit_bias"})


def name_of(path: Path) -> str:
    """Returns the path as the table's documentation writes it."""
    name = ""
    for key in path:
        name += "[]" if isinstance(key, int) else f".{key}"
    return name.lstrip(".")


def is_free(path: Path) -> bool:
    """True if the table allows any JSON here."""
    return any(name_of(path[:end]) in FREE_FORM for end in range(len(path) + 1))


def passes_unknown(path: Path, key: str, value: Any) -> bool:
    """True if the table allows another key here."""
    name, media = name_of(path), key in ("image_url", "input_audio")
    if name in KEEPING:
        return value in (None, 1, False, []) or (value == "x" and not media)
    if name in TOOLS:
        return value is None or (not media and not isinstance(value, (dict, list)))
    if name in FUNCTIONS:
        return value is None or not media
    if value is None:  # it says nothing; at the top level, the service leaves it out
        return bool(path) or key not in allowed_fields.REQUEST
    return name in FREE_KEYS and (name == "metadata" or not isinstance(value, (dict, list)))


def put(path: Path, value: Any) -> dict[str, Any]:
    """Returns the full request with another value at this path."""
    request = copy.deepcopy(FULL)
    if not path:
        return value
    target: Any = request
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return request


def passes(request: dict[str, Any]) -> bool:
    """True if the request is allowed and nothing extra is reserved for it."""
    try:
        return not chat_request.read(json.dumps(request).encode()).held
    except WattfareError as refused:
        assert refused.code == "invalid_request"  # noqa: PT017
        return False


ALL = list(places(FULL))
OBJECTS = [(path, value) for path, value in ALL if isinstance(value, dict)]
#: Keys that cost money at some provider.
COSTLY = [
    *("image_url", "image", "images", "input_audio", "audio", "file", "file_data", "video_url"),
    *("source", "document", "plugins", "models", "web_search", "prompt", "cache_control", "raw"),
]
#: The media keys among them.
MEDIA = ("image_url", "image", "images", "input_audio", "audio", "video_url", "document")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
#: A key with the value null says nothing, so it may pass.
SOMETHING = JSON.filter(lambda value: value is not None)


def test_full_request_passes() -> None:
    assert passes(FULL)


@given(st.sampled_from(OBJECTS), st.sampled_from(COSTLY) | st.text(max_size=10), JSON)
def test_unknown_key_in_any_object_is_refused(
    place: tuple[Path, dict[str, Any]], key: str, value: Any
) -> None:
    path, found = place
    if key in found or is_free(path) or name_of(path) in FREE_KEYS:
        return
    let_through = passes(put(path, {**found, key: value}))
    # The table lists fields that the full request leaves out. Each has its own rule.
    assert not let_through or not any(costly in json.dumps(value) for costly in COSTLY)
    if key not in allowed_fields.REQUEST and not path:
        assert let_through is (value is None)


@pytest.mark.parametrize("place", OBJECTS, ids=lambda place: name_of(place[0]) or "request")
def test_costly_key_in_each_object_is_refused(place: tuple[Path, dict[str, Any]]) -> None:
    path, found = place
    for key in ("image_url", "input_audio", "zz_unknown"):
        for value in (IMAGE, "x", None, 1, False, []):
            expected = is_free(path) or passes_unknown(path, key, value)
            assert passes(put(path, {**found, key: value})) is expected, (key, value)


@given(st.sampled_from(ALL), st.sampled_from(COSTLY), SOMETHING)
def test_object_in_place_of_any_value_is_refused(
    place: tuple[Path, Any], key: str, value: Any
) -> None:
    path, found = place
    hidden = {"type": key, key: value}
    if name_of(path).startswith(KEPT) and (key not in MEDIA or "annotations" in path):
        return
    places = {name_of(path), f"{name_of(path)}[]"}  # an array may hold it, too
    if places & FUNCTIONS or (places & KEEPING and key not in MEDIA) or path[:1] == ("metadata",):
        return
    for value in (hidden, [hidden], [[hidden]], {"type": "text", "text": hidden}):
        if value != found and not is_free(path) and name_of(path) not in FREE_KEYS:
            assert not passes(put(path, value))


def test_free_form_fields_accept_any_json() -> None:
    seen = {name_of(path) for path, _ in ALL if name_of(path) in FREE_FORM}
    assert FREE_FORM - seen == {"response_format.schema"}
    for path, _ in ALL:
        if name_of(path) in FREE_FORM:
            assert passes(put(path, {"image_url": IMAGE, "deep": [{"plugins": [1]}]}))


# -- over HTTP: a refused request does not reach the upstream


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "refusal", "refusal": "x", "image_url": IMAGE}]},
        {"role": "user", "content": [{"type": "text", "text": IMAGE}]},
        {"role": "user", "content": "x", "name": {"image_url": IMAGE}},
        {"role": {"image_url": IMAGE}, "content": "x"},
        {"role": "assistant", "tool_calls": [{"type": "function", "image_url": IMAGE}]},
        {"role": "assistant", "function_call": {"name": "f", "image_url": IMAGE}},
        {"role": "assistant", "reasoning_details": [{"type": "x", "image_url": IMAGE}]},
        {"role": "assistant", "reasoning": [{"type": "image_url", "image_url": IMAGE}]},
        {"role": "assistant", "annotations": [{"type": "file", "file": {"content": [IMAGE]}}]},
        {"role": "tool", "tool_call_id": [IMAGE], "content": "x"},
    ],
    ids=json.dumps,
)
def test_refused_image_does_not_reach_the_upstream(
    forwarding: Service, upstream: Upstream, message: dict[str, Any]
) -> None:
    with forwarding.app() as app:
        app.connect(monthlyUsd=100)
        answer = _post(app, [message])
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid_request"
        assert not upstream.calls
        assert app.status()["usage"] == {"monthlyUsd": 0}
        assert _post(app, FULL["messages"]).status_code == 200


def _post(app: App, messages: list[Any]) -> Any:
    body = {**chat_body(), "model": "fake/model", "messages": messages}
    return app.http.post("/chat/completions", json=body, headers=app.paid_by("u1"))
