"""Samples of what clients and upstreams send, for the fuzzer to change."""

from __future__ import annotations

from typing import Any

_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
_FUNCTION = {"name": "f", "description": "…", "parameters": {"type": "object", "properties": {}}}
_USER = {"role": "user", "content": "one two three"}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": 0.00001}

REQUESTS: list[Any] = [
    {"model": "wattfare/echo", "messages": [_USER]},
    {
        "model": "wattfare/echo",
        "messages": [_USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "n": 2,
        "temperature": 0.5,
        "stop": ["\n"],
        "metadata": {"a": "b"},
        "logit_bias": {"50256": -100},
    },
    {
        "model": "openai/gpt-4o",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": None, "tool_calls": [_CALL], "annotations": []},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}, {"type": "custom", "custom": {}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "reasoning": {"max_tokens": 4000, "exclude": True},
        "max_completion_tokens": 8000,
        "provider": {"order": ["x"], "sort": "price"},
        "transforms": ["middle-out"],
        "models": [],
    },
]

CHUNKS: list[Any] = [
    {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "one"}}]},
    {"id": "1", "choices": [{"index": 0, "delta": {"content": "é two"}, "finish_reason": None}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, **_CALL}], "reasoning": "x"}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None},
    {"choices": [], "usage": _USAGE},
    {"choices": [{"delta": {"content": ""}, "error": {"code": 502, "message": "x"}}]},
    {"error": {"code": "insufficient_quota", "message": "x", "metadata": {"reasons": ["y"]}}},
]

ANSWERS: list[Any] = [
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two", "tool_calls": [_CALL]},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "x", "logprob": -0.1}]},
            }
        ],
        "usage": _USAGE,
    },
    {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}], "usage": _USAGE},
    {"choices": [{"message": {"content": ""}, "error": {"code": 402, "message": "x"}}]},
    {"error": {"code": 403, "message": "x", "metadata": {"reasons": ["y"]}}},
    {"error": "x"},
    {"error": {"type": "authentication_error", "status": "401", "message": "x"}},
    [{"error": {"code": 400, "status": "x", "details": [{"reason": "API_KEY_INVALID"}]}}],
    {"detail": [{"loc": ["body", 1], "msg": "x"}, {"loc": ["n"], "msg": "y"}]},
    {"object": "error", "message": "x", "code": 400},
    {"error": {"message": "x", "metadata": {"raw": '{"error": {"message": "y"}}'}}},
]

_PRICES = {"prompt": "0.000001", "completion": "0.000002"}

PRICE_LISTS: list[Any] = [
    [{"id": "models/m", "pricing": _PRICES}, {"id": "n"}, "o"],
    {"models": [{"name": "models/m", "model": "m:latest", "pricing": _PRICES}]},
    {"object": "list", "data": [{"id": "m", "pricing": _PRICES}, {"id": "n", "object": "model"}]},
    {
        "data": [
            {
                "id": "o",
                "pricing": {
                    **_PRICES,
                    "request": "0.01",
                    "input_cache_write": "0.00000125",
                    "internal_reasoning": 0.000004,
                    "overrides": [{"prompt": "0.000003", "min_prompt_tokens": 200000}],
                },
            },
            {"id": "router", "pricing": {"prompt": "-1", "completion": "-1"}},
        ]
    },
]
