"""DashScope does not count thinking in ``max_tokens``. The reservation covers it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.service import chat_body
from support.upstream import Upstream

from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.models.upstream import Upstream as Provider
from wattfare_mw.service.models.upstream import UpstreamJob

#: The price of a token of an answer, in nano-dollars.
PRICE = 2000
LIMIT = 1000


async def job(upstream: Upstream, provider: str, **fields: Any) -> UpstreamJob:
    """The prepared call, for an upstream that sells all models at one price."""
    body = chat_body(**{"max_tokens": LIMIT, **fields})
    known = Provider(upstream.url, provider=provider, prices={"?*": "1/2"})
    try:
        return await known.prepare(chat_request.read(json.dumps(body).encode()), "r")
    finally:
        await known.close()


@pytest.mark.parametrize(
    ("model", "fields", "beyond"),
    [
        ("qwen3.7-plus", {"enable_thinking": True}, 10),  # as inexact as documented
        ("kimi-k2.5", {}, 10),
        ("glm-5.1", {}, 10),
        # Sold by another. It always thinks, and has no budget for it.
        ("MiniMax/MiniMax-M2.5", {}, 131_072),
        ("MiniMax/MiniMax-M2.5", {"enable_thinking": False}, 131_072),
        ("MiniMax/MiniMax-M2.5", {"thinking_budget": 500}, 131_072),
        ("qwen3.8-flash", {}, 262_144),
        ("qwen3.6-flash", {}, 131_072),
        ("qwen3.5-35b-a3b", {}, 81_920),
        ("qwen3-32b", {}, 81_920),
        ("qwen3-32b", {"enable_thinking": False}, 0),
        ("qwen3-32b", {"thinking_budget": 4000}, 4000),
        ("qwen3-32b", {"thinking_budget": 10**6}, 81_920),
        ("qwen3-32b", {"thinking_budget": 500, "n": 2}, 1000),
        ("qwen-plus", {}, 0),
        ("qwen-plus", {"enable_thinking": True}, 81_920),
        ("qwen3-max", {}, 0),
        ("qwen3-235b-a22b-instruct-2507", {}, 0),
        ("qwen3-235b-a22b-thinking-2507", {"enable_thinking": False}, 81_920),
        ("qwq-plus", {"enable_thinking": False}, 81_920),
        ("deepseek-v3.2", {}, 0),
    ],
)
async def test_thinking_beyond_the_limit_is_reserved(
    upstream: Upstream, model: str, fields: dict[str, Any], beyond: int
) -> None:
    there = await job(upstream, "dashscope", model=model, **fields)
    # Everywhere else, the limit includes thinking.
    usual = {name: value for name, value in fields.items() if name != "thinking_budget"}
    elsewhere = await job(upstream, "vllm", model=model, **usual)
    assert there.bounds.most - elsewhere.bounds.most == beyond * PRICE
    assert there.bounds.least - elsewhere.bounds.least == beyond * PRICE


async def test_thinking_has_its_own_limit(upstream: Upstream) -> None:
    separate = await job(upstream, "dashscope", model="qwen3-32b", thinking_budget=LIMIT)
    assert separate.bounds.least < separate.bounds.most
    # Elsewhere, thinking may use the whole limit, so the limit is not lowered.
    for provider, model in (("vllm", "qwen3-32b"), ("dashscope", "qwen3.7-max")):
        included = await job(upstream, provider, model=model, thinking_budget=LIMIT)
        assert included.bounds.least == included.bounds.most


async def test_limit_of_the_service_has_room_for_thinking(upstream: Upstream) -> None:
    """Cherry Studio and others send a large budget for thinking and no limit."""
    plain = await job(upstream, "vllm", model="qwen3-32b", max_tokens=None)
    thinking = await job(
        upstream, "vllm", model="qwen3-32b", max_tokens=None, thinking_budget=32_768
    )
    assert thinking.bounds.most - plain.bounds.most == 32_768 * PRICE
    assert thinking.bounds.least - plain.bounds.least == 32_768 * PRICE
    # The model's own maximum is the highest limit.
    capped = await job(
        upstream, "vllm", model="claude-3-5-haiku-latest", max_tokens=None, thinking_budget=32_768
    )
    assert capped.bounds.most == plain.bounds.most
