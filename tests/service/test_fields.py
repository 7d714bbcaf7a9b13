"""Which fields an inference request may have: all that are ordinary, and none whose cost cannot be
bounded, or that nobody here has read about."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.service import chat_body

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import allowed_fields
from wattfare_mw.service.chat import request as chat_request

FUNCTION = {"name": "weather", "description": "…", "parameters": {"type": "object"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

ORDINARY = {
    "temperature": 0.2,
    "top_p": 1,
    "top_k": 4,
    "min_p": 0.1,
    "stop": ["\n"],
    "seed": 7,
    "user": "u",
    "n": 3,
    "logprobs": True,
    "top_logprobs": 5,
    "logit_bias": {"50256": -100},
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "max_completion_tokens": 5,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": {}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "functions": [FUNCTION],
    "function_call": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "reasoning_effort": "high",
    "reasoning": {"max_tokens": 4000, "exclude": True},
    "verbosity": "low",
    "store": False,
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "default",
    "modalities": ["text"],
    "transforms": ["middle-out"],
    "usage": {"include": True},
    "provider": {"data_collection": "deny", "order": ["x"]},
    # Nothing is asked for by these.
    "plugins": [],
    "models": [],
    "web_search_options": None,
    "audio": None,
    "prediction": None,
}

REFUSED = {
    "plugins": [{"id": "web"}],
    "web_search_options": {},
    "prediction": {"type": "content", "content": "x"},
    "service_tier": "priority",
    "models": "openai/gpt-5-pro",
    "route": "fallback",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "preset": "mine",
    "best_of": 2,
    "store": True,
    "transforms": ["other"],
    "prompt": "hello",
    "moderation": {"model": "x"},
    "n": 129,
    "image_config": {"size": "4k"},
    "Temperature": 1,
    "something_new": None,
    "provider": {"max_price": {"prompt": 1}},
    "reasoning": {"budget": 1},
    "stream_options": {"what": 1},
}


def read(**fields) -> chat_request.ChatRequest:
    return chat_request.read(json.dumps(chat_body(**fields)).encode())


def refusal(**fields) -> str:
    with pytest.raises(WattfareError) as refused:
        read(**fields)
    assert (refused.value.code, refused.value.http_status) == ("invalid_request", 400)
    return refused.value.message


@pytest.mark.parametrize(("name", "value"), ORDINARY.items(), ids=ORDINARY)
def test_ordinary_fields_pass_as_they_are(name: str, value: object) -> None:
    assert read(**{name: value}).body[name] == value


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_bounded_is_refused_by_its_name(name: str, value: object) -> None:
    more = {"stream": True} if name == "stream_options" else {}
    assert f"`{name}" in refusal(**{name: value}, **more)


@pytest.mark.parametrize(("name", "value"), [("store", 0), ("best_of", True), ("best_of", 1.0)])
def test_true_is_not_one(name: str, value: object) -> None:
    assert f"`{name}" in refusal(**{name: value})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "tiles": 9}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "input_audio", "input_audio": {"data": "T2dnUw==", "format": "ogg"}},
        {"type": "file", "file": {}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "https://example.com/a.pdf"}},
        {"type": "file", "file": {"file_data": "UEsDBBQ/"}},
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "document", "source": {"type": "file", "file_id": "file-1"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": 5},
        {"text": "x"},
        "text",
        None,
        {"type": "text", "text": "x", "image_url": {}},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    ids=str,
)
def test_parts_that_are_not_text(part: object) -> None:
    said = refusal(messages=[{"role": "user", "content": ["x", part][1:]}])
    assert "messages[0].content[0]" in said


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": {"type": "image_url"}},
        {"role": "assistant", "audio": {"id": "a"}},
        {"role": "user", "content": "x", "images": [{}]},
        {"role": "user", "content": "x", "images": [{"type": "file", "file": {}}]},
        {"role": "user", "content": "x", "attachments": [1]},
        {"role": "assistant", "tool_calls": [{"type": "web_search"}]},
        {"role": "assistant", "tool_calls": "x"},
    ],
    ids=str,
)
def test_messages_with_more_than_text(message: dict) -> None:
    assert "messages[0]." in refusal(messages=[message])


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "openrouter:x", None, 1])
def test_tools_that_the_upstream_runs(kind: object) -> None:
    assert "`tools[1]`" in refusal(tools=[{"type": "function"}, {"type": kind}])


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """The SDKs' habit: the assistant's message with all its nulls, then the tool's."""
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": [CALL],
        "reasoning": "so",
        "reasoning_details": [{"type": "reasoning.text", "text": "so"}],
    }
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "system", "content": [part]},
        {"role": "user", "content": "x", "name": "ada"},
        answer,
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert read(messages=messages).messages == messages


def test_every_parameter_of_the_openai_package_is_known() -> None:
    from openai.types.chat.completion_create_params import (
        CompletionCreateParamsNonStreaming,
        CompletionCreateParamsStreaming,
    )

    for shape in (CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming):
        assert set(shape.__annotations__) <= set(allowed_fields.REQUEST)


@given(st.text().filter(lambda name: name not in allowed_fields.REQUEST), st.none() | st.integers())
def test_nothing_unknown_passes(name: str, value: object) -> None:
    with pytest.raises(WattfareError, match="is no field that this service knows"):
        allowed_fields.check({name: value})


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
    ),
    st.sampled_from(sorted(allowed_fields.REQUEST)),
)
def test_any_value_passes_or_is_refused(value: object, name: str) -> None:
    for given_value in (value, [value]):
        try:
            allowed_fields.check({name: given_value})
        except WattfareError as refused:
            assert refused.code == "invalid_request"  # noqa: PT017
            assert name in refused.message  # noqa: PT017
