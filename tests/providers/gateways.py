"""Gateways in front of several providers, besides OpenRouter and LiteLLM."""

from __future__ import annotations

from typing import Any

from providers.rows import (
    LIST,
    WORDS,
    Provider,
    Row,
    cached,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    tokens,
)

_EDEN_AI = "https://docs.edenai.co/v3/overview/ai-gateway"
_NANOGPT = "https://docs.nano-gpt.com/api-reference/endpoint/chat-completion"
_WHOLE = [{"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}}]


def _beside(**more: Any) -> dict[str, Any]:
    """A whole answer with more fields, and the chunks of a stream with them in the last one."""
    last = {**finish_chunk(), "usage": tokens(100, 10), **more}
    words = (delta_chunk({"content": word}) for word in WORDS)
    answer = {"choices": _WHOLE, "usage": tokens(100, 10), **more}
    return {"answer": answer, "chunks": (*words, last)}


PROVIDER = Provider(
    name="Other",
    cached="yes, in most gateways",
    reasoning="depends on the gateway's provider",
    cost="some, in `usage.cost` or next to the usage",
    streams="in a last chunk, if requested",
    source=_EDEN_AI,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="the cost next to the usage, in `cost` (Eden AI)",
            rule="bills it",
            source=_EDEN_AI,
            **_beside(cost=0.0005),
            bill=500_000,
        ),
        Row(
            quirk="`cost: 0` next to the usage",
            rule="bills nothing",
            source=_EDEN_AI,
            **_beside(cost=0),
            bill=0,
        ),
        Row(
            quirk="a chunk with only a cost, as text, before `[DONE]` (OpenCode Zen)",
            rule="bills it; a whole answer without a cost is billed by its tokens",
            source="https://opencode.ai/docs/zen/",
            usage=tokens(85, 16),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "usage": tokens(85, 16)},
                {"choices": [], "x-opencode-type": "inference-cost", "cost": "0.00001638"},
            ),
            bill=85 * 1000 + 16 * 2000,
            stream_bill=16_380,
        ),
        Row(
            quirk="the cost in `x_nanogpt_pricing`, an object next to the usage (NanoGPT)",
            rule="bills it",
            source=_NANOGPT,
            **_beside(
                x_nanogpt_pricing={
                    "amount": 0.0005,
                    "currency": "USD",
                    "inputTokens": 100,
                    "outputTokens": 10,
                }
            ),
            bill=500_000,
        ),
        Row(
            quirk="the cost in `usd_cents` (Puter)",
            rule="bills it",
            source="https://github.com/HeyPuter/puter/issues/2892",
            usage=tokens(15, 1750, cached_tokens=0, usd_cents=0.42),
            bill=4_200_000,
        ),
        Row(
            quirk="the cost and `cost_currency: EUR`",
            rule="ignores the cost, because it is not in USD, and bills the tokens",
            source="https://github.com/ls1intum/edutelligence/pull/725",
            usage=tokens(100, 10, cost=0.0005, cost_currency="EUR"),
            bill=100 * 1000 + 10 * 2000,
        ),
        Row(
            quirk=(
                "`cached_creation_tokens`, and the tokens cached for an hour next to them (New "
                "API; $1.25 and $2)"
            ),
            rule="bills them at their prices, as part of the prompt",
            source="https://github.com/QuantumNous/new-api",
            price={
                **LIST,
                "input_cache_write": "0.00000125",
                "input_cache_write_1h": "0.000002",
            },
            usage=tokens(
                1000,
                10,
                **cached(100, cached_creation_tokens=500),
                claude_cache_creation_5_m_tokens=200,
                claude_cache_creation_1_h_tokens=300,
            ),
            bill=400 * 1000 + 100 * 100 + 200 * 1250 + 300 * 2000 + 10 * 2000,
        ),
    ),
)
