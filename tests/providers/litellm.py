"""LiteLLM's proxy."""

from __future__ import annotations

from providers.rows import (
    LIST,
    WORDS,
    Provider,
    Row,
    cached,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    reasoned,
    tokens,
)

_HEADERS = "https://docs.litellm.ai/docs/proxy/response_headers"
_USAGE = "https://docs.litellm.ai/docs/completion/usage"
_GROK = "https://github.com/BerriAI/litellm/pull/39426"
_COST = "x-litellm-response-cost"

PROVIDER = Provider(
    name="LiteLLM",
    cached="yes; in old versions, without written tokens",
    reasoning="depends on LiteLLM's provider",
    cost=(
        "in the HTTP header `x-litellm-response-cost`; in a stream, in `usage.cost` with "
        "`include_cost_in_streaming_usage`"
    ),
    streams="in a last chunk without choices, if requested",
    source=_USAGE,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="the cost is in an HTTP header of the whole answer",
            rule="bills it. A stream has no cost in its headers, so it is billed by its tokens",
            source=_GROK,
            headers={_COST: "0.000612"},
            usage=tokens(12, 1),
            bill=612_000,
            stream_bill=12 * 1000 + 1 * 2000,
        ),
        Row(
            quirk="a cost of 0.0 in the header, because LiteLLM does not know the model",
            rule="bills the tokens, if the model has a price",
            source=_HEADERS,
            headers={_COST: "0.0"},
            usage=tokens(12, 1),
            bill=12 * 1000 + 1 * 2000,
        ),
        Row(
            quirk="a header that is not an amount",
            rule="ignores it",
            source=_HEADERS,
            headers={_COST: "None"},
            usage=tokens(12, 1),
            bill=12 * 1000 + 1 * 2000,
        ),
        Row(
            quirk="`usage.cost` and the header",
            rule="bills `usage.cost`",
            source=_USAGE,
            headers={_COST: "0.5"},
            usage=tokens(12, 1, cost=0.000612),
            bill=612_000,
        ),
        Row(
            quirk="cached tokens in OpenAI's and in Anthropic's names",
            rule="counts them once, as part of the prompt",
            source="https://docs.litellm.ai/docs/completion/prompt_caching",
            usage=tokens(
                2006,
                300,
                **cached(1920, text_tokens=None),
                cache_creation_input_tokens=0,
                cache_read_input_tokens=1920,
            ),
            bill=86 * 1000 + 1920 * 100 + 300 * 2000,
        ),
        Row(
            quirk="written tokens in the details, some of them for an hour ($1.25 and $2)",
            rule="bills them at their prices, as part of the prompt",
            source="https://github.com/mozilla-ai/any-llm/pull/896",
            price={
                **LIST,
                "input_cache_write": "0.00000125",
                "input_cache_write_1h": "0.000002",
            },
            usage=tokens(
                2000,
                10,
                **cached(
                    500,
                    cache_creation_input_tokens=1000,
                    cache_creation={"ephemeral_1h_input_tokens": 400},
                ),
            ),
            bill=500 * 1000 + 500 * 100 + 600 * 1250 + 400 * 2000 + 10 * 2000,
        ),
        Row(
            quirk="more tokens written to the cache than `prompt_tokens` ($1.25), in old versions",
            rule="adds them, because they are more than the prompt",
            source="https://github.com/BerriAI/litellm/issues/15056",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(
                31, 467, **cached(0), cache_creation_input_tokens=1253, cache_read_input_tokens=0
            ),
            bill=31 * 1000 + 1253 * 1250 + 467 * 2000,
        ),
        Row(
            quirk="a cost in a gateway's own unit: 555,533 for less than a cent",
            rule="ignores it, because the tokens cannot cost that much",
            source="https://github.com/BerriAI/litellm/pull/39325",
            usage=tokens(16_111, 2, cost=555_533, **cached(15_872)),
            bill=239 * 1000 + 15_872 * 100 + 2 * 2000,
        ),
        Row(
            quirk="`cache_read_tokens` and `cache_write_tokens` next to the other counts ($1.25)",
            rule="bills them at their prices, as part of the prompt",
            source="https://github.com/NousResearch/hermes-agent/pull/14823",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(
                24_731,
                5,
                **cached(22_643),
                cache_read_tokens=22_643,
                cache_write_tokens=2088,
            ),
            bill=22_643 * 100 + 2088 * 1250 + 5 * 2000,
        ),
        Row(
            quirk=(
                "`total_tokens` includes the written tokens, but `prompt_tokens` does not ($1.25)"
            ),
            rule="adds them to the prompt, not to the answer",
            source="https://github.com/SamSaffron/term-llm/pull/424",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(1000, 10, total_tokens=1510, **cached(0, cache_write_tokens=500)),
            bill=1000 * 1000 + 500 * 1250 + 10 * 2000,
        ),
        Row(
            quirk="more reasoning than `completion_tokens`, and `total_tokens` without it",
            rule="adds the reasoning, because it is more than the answer",
            source="https://github.com/BerriAI/litellm/issues/10667",
            usage=tokens(10_761, 774, **reasoned(1175, text_tokens=None)),
            bill=10_761 * 1000 + (774 + 1175) * 2000,
        ),
        Row(
            quirk="a separate count in each chunk, from a server behind LiteLLM",
            rule="adds them up",
            source="https://github.com/praxis-proxy/ai/issues/119",
            usage=tokens(10, 4),
            chunks=(
                *({**delta_chunk({"content": word}), "usage": tokens(10, 1)} for word in WORDS),
                finish_chunk(),
            ),
            bill=10 * 1000 + 4 * 2000,
        ),
    ),
)
