"""A conversation continues with the messages that a library has kept. No costly value can hide in
them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.service import App, Service, chat_body
from support.upstream import Exchange, Upstream

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import allowed_fields, prompt_bound
from wattfare_mw.service.chat import request as chat_request

CITATION = {
    "type": "url_citation",
    "url_citation": {"end_index": 1, "start_index": 0, "title": "t", "url": "https://a.example"},
}
FILE = {
    "type": "file",
    "url_citation": None,
    "file": {"hash": "h", "name": "n.pdf", "content": [{"type": "text", "text": "page"}]},
}
THINKING = [{"type": "thinking", "thinking": "I think", "signature": "sig"}]
DETAILS = [
    {
        "type": "reasoning.text",
        "text": "I think",
        "signature": "sig",
        "format": "anthropic-claude-v1",
        "index": 0,
    },
    {"type": "reasoning.encrypted", "data": "abc", "id": "r1", "format": "x", "index": 1},
]
SIGNATURE = {"thought_signature": "zzz"}
CALL = {
    "id": "call_1",
    "type": "function",
    "index": 0,
    "function": {"name": "add", "arguments": '{"a":1,"b":2}'},
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "3"}

#: Earlier messages as libraries send them again, recorded from openai 3.57 (`parse`), litellm
#: 1.110, llama-index 0.10, LangChain 1.8, the AI SDK 5, and their own formats on disk.
RECORDED: dict[str, list[dict[str, Any]]] = {
    "openai parse": [
        {
            "content": '{"a":1,"image":"x"}',
            "refusal": None,
            "role": "assistant",
            "annotations": [CITATION, FILE],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
            "parsed": {"a": 1, "image": "x"},
            "reasoning": "I think",
            "reasoning_content": "I think",
            "reasoning_details": DETAILS,
            "provider_specific_fields": {"citations": None, "thinking_blocks": THINKING},
            "thinking_blocks": THINKING,
        }
    ],
    "openai parse of a tool": [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    **CALL,
                    "function": {
                        "arguments": '{"image_url":"https://a.example/a.png"}',
                        "name": "add",
                        "parsed_arguments": {"image_url": "https://a.example/a.png"},
                    },
                    "extra_content": {"google": SIGNATURE},
                    "provider_specific_fields": SIGNATURE,
                }
            ],
            "parsed": None,
        },
        RESULT,
    ],
    "litellm": [
        {
            "role": "assistant",
            "tool_calls": [{**CALL, "provider_specific_fields": SIGNATURE}],
            "reasoning_content": "I think",
            "thinking_blocks": THINKING,
            "provider_specific_fields": {
                "citations": None,
                "reasoning_details": DETAILS,
                "annotations": [FILE],
            },
            "annotations": [CITATION],
            "images": [],
        },
        {**RESULT, "name": "add"},
    ],
    "a tool call without a type": [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"name": "add", "arguments": "{}"}}],
        },
        RESULT,
    ],
    "langchain": [
        {
            "role": "assistant",
            "type": "ai",
            "content": [{"type": "text", "text": "hello", "index": 0, "annotations": [CITATION]}],
            "id": "run-1",
            "name": None,
            "example": False,
            "additional_kwargs": {"refusal": None, "parsed": {"file": "a"}},
            "response_metadata": {
                "token_usage": {
                    "completion_tokens_details": {"audio_tokens": 0, "reasoning_tokens": 3},
                    "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 0},
                },
                "model_name": "m",
                "finish_reason": "stop",
                "logprobs": None,
            },
            "usage_metadata": {"input_tokens": 1, "input_token_details": {"audio": 0}},
            "invalid_tool_calls": [],
            "tool_calls": [],
        },
        {
            "role": "tool",
            "content": "3",
            "tool_call_id": "call_1",
            "status": "success",
            "artifact": {"x": 1},
            "additional_kwargs": {},
        },
    ],
    "the ai sdk": [
        {
            "role": "user",
            "id": "m1",
            "createdAt": "2026-11-28T12:00:00.000Z",
            "content": "hi",
            "parts": [{"type": "text", "text": "hi", "state": "done"}],
            "experimental_attachments": [],
            "metadata": {"a": 1, "b": {"c": None}},
        },
        {
            "role": "assistant",
            "id": "m2",
            "createdAt": 1764331200,
            "content": "hello",
            "reasoning": "I think",
            "parts": [
                {"type": "step-start"},
                {"type": "reasoning", "text": "I think", "providerMetadata": {"x": {"y": "z"}}},
                {"type": "source-url", "sourceId": "s", "url": "https://a.example"},
                {"type": "text", "text": "hello", "providerMetadata": {"openai": {"itemId": "i"}}},
            ],
            "toolInvocations": [{"state": "result", "args": {"image": "x"}, "result": 3}],
        },
    ],
    "thoughts as parts": [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "I think"}]},
                {"type": "thinking", "thinking": "I think", "signature": "sig"},
                {"type": "redacted_thinking", "data": "abc"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
                {"type": "output_text", "text": "hello", "annotations": [CITATION], "logprobs": []},
                {"type": "tool_use", "id": "t", "name": "add", "input": {"image": "x"}},
            ],
            "status": "completed",
            "phase": "final_answer",
            "finish_reason": "stop",
            "index": 0,
            "logprobs": None,
        }
    ],
    "citations": [
        {
            "role": "assistant",
            "content": "hello",
            "citations": ["https://a.example", "https://b.example"],
            "search_results": [{"title": "t", "url": "https://a.example", "date": None}],
            "context": {"messages": [], "intent": "x"},
            "annotations": [
                {
                    "type": "file_citation",
                    "index": 3,
                    "file_citation": {"file_id": "file-1", "quote": "q"},
                },
                {"type": "file_citation", "index": 3, "file_id": "file-1", "filename": "n.pdf"},
                {"type": "container_file_citation", "file_id": "f", "container_id": "c"},
                {"type": "file_path", "file_path": {"file_id": "file-1"}},
            ],
        }
    ],
    "notes of the app": [
        {"role": "user", "content": "x", "metadata": {"source": "https://a.example"}},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {**RESULT, "artifact": {"rows": [{"link": "https://a.example"}]}, "status": "success"},
    ],
    "results of a search": [
        {
            "role": "assistant",
            "content": "x",
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {
                        "url": "https://a.example",
                        "image": "https://a.example/i.png",
                    },
                }
            ],
        }
    ],
    "calls of the provider": [
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "type": "builtin_function"}]},
        RESULT,
    ],
    "parts of Anthropic": [
        {"role": "assistant", "content": [{"type": "tool_use", "name": "add", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "3", "is_error": False},
                {
                    "type": "search_result",
                    "source": "https://a.example",
                    "title": "t",
                    "content": [{"type": "text", "text": "x"}],
                    "citations": {"enabled": True},
                },
            ],
        },
    ],
    "cached": [
        {
            "role": "assistant",
            "content": "hello",
            "provider_options": {"anthropic": {"cacheControl": {"type": "ephemeral"}}},
            "thinking_blocks": [{**THINKING[0], "cache_control": {"type": "ephemeral"}}],
        }
    ],
}

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
RECORDED["tools from the middle of a conversation"] = [
    {"role": "system", "tools": [{"type": "function", "function": FUNCTION}]},
    {"role": "developer", "content": "x", "tools": [{"type": "function", "function": FUNCTION}]},
]

IMAGE = "data:image/png;base64,iVBORw0KGgo="
#: Values that cost more than their text.
COSTLY: list[Any] = [
    {"image_url": {"url": "https://a.example/a.png"}},
    {"imageUrl": "https://a.example/a.png"},
    {"images": ["iVBORw0KGgo="]},
    {"deep": [[{"input_audio": {"data": "x", "format": "wav"}}]]},
    {"inlineData": {"mimeType": "x", "data": "y"}},
    {"type": "input_image", "source": {"data": "x"}},
    {"type": "document", "source": {"data": "x"}},
    {"source": {"media_type": "image/png", "data": "iVBORw0KGgo="}},
    {"file": {"file_id": "file-1"}},
    {"file_data": "x"},
    {"attachments": [{"id": "file-1"}]},
    {"video": "x"},
    {"x": IMAGE},
    {"x": ["  " + IMAGE.upper()]},
    {"annotations": [{"type": "file", "file": {"content": [{"type": "image_url"}]}}]},
    {"annotations": [{"type": "file", "file": {"file_data": IMAGE}}]},
    {"annotations": [{"type": "file", "file": {"content": [{"url": IMAGE}]}}]},
]
#: Keys under which they might hide in a message of a model.
PLACES = ("reasoning", "reasoning_details", "thinking_blocks", "provider_specific_fields", "zz")


def check(*messages: dict[str, Any], **more: Any) -> tuple[str, ...]:
    return allowed_fields.check(chat_body(messages=list(messages), **more))


def refusal(*messages: dict[str, Any], **more: Any) -> str:
    with pytest.raises(WattfareError) as refused:
        check(*messages, **more)
    assert refused.value.code == "invalid_request"
    return refused.value.message


@pytest.fixture
def app(forwarding: Service, upstream: Upstream) -> Iterator[App]:
    with forwarding.app() as app:
        app.connect(monthlyUsd=100)
        yield app


@pytest.mark.parametrize("case", RECORDED)
def test_kept_message_is_forwarded_unchanged(app: App, upstream: Upstream, case: str) -> None:
    messages = [{"role": "user", "content": "hi"}, *RECORDED[case]]
    body = {**chat_body(), "model": "fake/model", "messages": messages}
    answer = app.http.post("/chat/completions", json=body, headers=app.paid_by("u1"))
    assert answer.status_code == 200, answer.text
    assert upstream.calls[0].json["messages"] == messages


@pytest.mark.parametrize("case", RECORDED)
def test_kept_message_counts_in_the_prompt_bound(case: str) -> None:
    messages = RECORDED[case]
    body = chat_body(messages=messages)
    # As a chat template may write it: with spaces, in ASCII.
    assert prompt_bound.bound(body) > len(json.dumps(messages))
    # Each key counts.
    for place, message in enumerate(messages):
        for key, value in message.items():
            if value and key not in ("role", "content"):
                less = copy.deepcopy(messages)
                del less[place][key]
                assert prompt_bound.bound(chat_body(messages=less)) < prompt_bound.bound(body)


@pytest.mark.parametrize("place", ["provider_specific_fields", "metadata", "reasoning_details"])
def test_prompt_bound_covers_reformatted_json(place: str) -> None:
    """A space after each comma and colon makes the JSON half as long again here."""
    message = {"role": "assistant", "content": "x", place: [{"a": 1}] * 5000}
    assert prompt_bound.bound(chat_body(messages=[message])) > len(json.dumps(message))


@pytest.mark.parametrize("place", PLACES)
def test_costly_value_in_a_kept_message_is_refused(place: str) -> None:
    for costly in COSTLY:
        part = {"type": "text", "text": "x", place: costly}
        message = {"role": "assistant", "content": "x", place: [costly]}
        assert f"messages[0].{place}" in refusal(message), costly
        message = {"role": "assistant", "content": [part]}
        assert f"messages[0].content[0].{place}" in refusal(message), costly
        message = {"role": "assistant", "tool_calls": [{**CALL, place: costly}]}
        assert f"messages[0].tool_calls[0].{place}" in refusal(message), costly


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool", "function", "ai"])
def test_url_in_an_unknown_field_of_a_message_is_refused(role: str) -> None:
    for value in ("https://a.example/a", "gs://bucket/x", ["s3://b/x"], {"a": {"b": "file:///x"}}):
        message_text = refusal({"role": role, "content": "x", "pointer": value})
        assert "is unknown and has a URL" in message_text
    check({"role": role, "content": "see https://a.example", "note": "no url", "n": [1, None]})


@pytest.mark.parametrize("name", ["Tools", "TOOL\u017f", "Tool_Calls", "CONTENT", "Images"])
def test_field_with_another_case_is_refused(name: str) -> None:
    """Some servers ignore the case of names, and the field itself has another rule."""
    for role in ("user", "assistant"):
        assert f"Write `messages[0].{name}` as `" in refusal({"role": role, name: []})
        part = {"type": "text", "text": "x", "Cache_Control": {"type": "ephemeral"}}
        assert "Write `messages[0].content[0]." in refusal({"role": role, "content": [part]})
    tool = {"type": "function", "Function": {"name": "f"}}
    assert "Write `tools[0].Function`" in refusal({"role": "user", "content": "x"}, tools=[tool])


def test_one_hour_cache_is_reserved_at_any_depth() -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    for key in ("cache_control", "cacheControl"):
        for place in ({key: hour}, {"zz": [{"anthropic": {key: hour}}]}):
            held = check({"role": "assistant", "content": "x", **place})
            assert [name.rpartition(".")[2] for name in held] == ["ttl"]


@pytest.mark.parametrize("kind", ["builtin_function", "web_search_call"])
def test_replayed_call_that_the_provider_may_run_is_held(kind: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "type": kind}]}
    assert check(message, RESULT) == ("messages[0].tool_calls[0]",)


def test_replayed_audio_is_reserved() -> None:
    whole = {"id": "audio_1", "data": "A" * 40_000, "expires_at": 1, "transcript": "hello"}
    for audio in ({"id": "audio_1"}, whole):
        message = {"role": "assistant", "content": None, "audio": audio}
        assert check(message) == ("messages[0].audio",)
    read = chat_request.read(json.dumps(chat_body(messages=[message])).encode())
    assert prompt_bound.bound({**read.body, "messages": read.text}) < 2000
    check({"role": "assistant", "content": "x", "audio": None})


def test_tool_in_a_message_follows_the_rule_for_tools() -> None:
    def message(*tools: dict[str, Any], role: str = "system") -> dict[str, Any]:
        return {"role": role, "tools": list(tools)}

    search = {"type": "builtin_function", "function": {"name": "$web_search"}}
    for role in ("system", "developer", "user", "assistant"):
        assert check(message(search, role=role)) == ("messages[0].tools[0]",)
        for kind in ("file_search", "mcp"):
            assert "`messages[0].tools[0]`" in refusal(message({"type": kind}, role=role))
    assert check({"role": "user", "content": "x", "tools": ["search"]}) == ()
    described = {"type": "function", "function": {**FUNCTION, "description": "<'>" * 99}}
    in_message = prompt_bound.bound(chat_body(messages=[message(described)]))
    assert in_message >= prompt_bound.bound(chat_body(messages=[message()], tools=[described]))


@pytest.mark.parametrize(
    "more",
    [
        {"strict": True},
        {"id": "t1", "strict": None},
        {"name": "f", "description": "d"},
        {"defer_loading": False, "eager_input_streaming": True},
        {"input_examples": [{"image": "x"}]},
        {"allowed_callers": ["direct"]},
        {"metadata": {"a": {"b": 1}}},
        {"cache_control": {"type": "ephemeral"}},
        {"web_search": None},
    ],
    ids=str,
)
def test_kept_tool_fields_are_forwarded(more: dict[str, Any]) -> None:
    message = {"role": "user", "content": "x"}
    check(message, tools=[{"type": "function", "function": FUNCTION, **more}])


@pytest.mark.parametrize(
    "more",
    [
        {"strict": True},
        {"returns": {"type": "object", "properties": {"image": {"type": "string"}}}},
        {"cache_control": {"type": "ephemeral"}},
        {"examples": [{"a": 1}]},
        {"title": "F", "version": 2, "deprecated": False},
    ],
    ids=str,
)
def test_kept_function_fields_are_forwarded(more: dict[str, Any]) -> None:
    message = {"role": "user", "content": "x"}
    check(message, tools=[{"type": "function", "function": {**FUNCTION, **more}}])
    check(message, functions=[{**FUNCTION, **more}])


@pytest.mark.parametrize(
    "more",
    [
        {"googleSearch": {}},
        {"google_search_retrieval": True},
        {"code_execution": {}},
        {"url_context": {}},
        {"web_search": "on"},
        {"new_tool": {}},
        {"allowed_callers": ["code"]},
    ],
    ids=str,
)
def test_provider_tool_beside_a_function_is_refused(more: dict[str, Any]) -> None:
    message = {"role": "user", "content": "x"}
    message_text = refusal(message, tools=[{"type": "function", "function": FUNCTION, **more}])
    assert "`tools[0]." in message_text


def test_builtin_model_reads_the_text_of_kept_parts() -> None:
    message = RECORDED["thoughts as parts"][0]
    assert chat_request.text_of(message) == "hello"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_openai_package_continues_with_what_it_parsed(app: App, upstream: Upstream) -> None:
    """Runs the package itself against the service."""
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")
    answer = pydantic.create_model("Answer", a=(int, ...), image=(str, ...))
    told = {
        "role": "assistant",
        "content": '{"a": 1, "image": "x"}',
        "annotations": [CITATION, FILE],
        "reasoning": "I think",
        "reasoning_details": DETAILS,
        "thinking_blocks": THINKING,
        "provider_specific_fields": {"x": 1},
    }

    def script(exchange: Exchange) -> None:
        choice = {"index": 0, "message": told, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        exchange.answer(
            {
                "id": "c1",
                "object": "chat.completion",
                "created": 1,
                "model": "fake/model",
                "choices": [choice],
                "usage": usage,
            }
        )

    upstream.script = script
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    with app.openai() as client:
        assert isinstance(client, openai.OpenAI)
        for form in (lambda message: message, lambda message: message.model_dump()):
            first = client.chat.completions.parse(
                model="fake/model", messages=messages, response_format=answer
            )
            messages += [form(first.choices[0].message), {"role": "user", "content": "more"}]
        client.chat.completions.create(model="fake/model", messages=messages)
    sent = upstream.calls[-1].json["messages"]
    assert sent[1]["parsed"] == sent[3]["parsed"] == {"a": 1, "image": "x"}
