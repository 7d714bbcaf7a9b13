"""xAI (Grok)."""

from __future__ import annotations

from providers.rows import (
    WORDS,
    Provider,
    Published,
    Row,
    cached,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    on_every_chunk,
    reasoned,
    tokens,
)

_COST = "https://docs.x.ai/developers/cost-tracking"
_MEASURED = "https://github.com/Wei-Shaw/sub2api/issues/5771"
_GROK_4_20 = {"prompt": "0.00000125", "completion": "0.0000025", "input_cache_read": "0.0000002"}
_COUNTS = tokens(10120, 1499, total_tokens=14428, **cached(128), **reasoned(2809))

PROVIDER = Provider(
    name="xAI",
    cached="yes",
    reasoning="not in `completion_tokens`, but in `total_tokens`",
    cost="yes, in `usage.cost_in_usd_ticks`; 10,000,000,000 ticks are $1",
    streams="in a last chunk without choices; in older models, in every chunk",
    source=_COST,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="the cost in ticks",
            rule="bills it",
            source=_MEASURED,
            price=_GROK_4_20,
            usage={**_COUNTS, "cost_in_usd_ticks": 232_856_000, "num_sources_used": 0},
            bill=23_285_600,
        ),
        Row(
            quirk="the same counts without the ticks ($1.25, $0.20 cached, $2.50)",
            rule="adds the reasoning to the answer, with the same bill",
            source=_MEASURED,
            price=_GROK_4_20,
            usage=_COUNTS,
            bill=9992 * 1250 + 128 * 200 + (1499 + 2809) * 2500,
        ),
        Row(
            quirk="more reasoning tokens than answer tokens",
            rule="bills `total_tokens` minus `prompt_tokens` as the answer",
            source="https://github.com/UKGovernmentBEIS/inspect_ai/issues/5528",
            usage=tokens(10, 2, total_tokens=329, **reasoned(317)),
            bill=10 * 1000 + 319 * 2000,
        ),
        Row(
            quirk="the same without `total_tokens`",
            rule="adds the reasoning, because it is more than the answer",
            source="https://github.com/VariantConst/OpenWebUI-Monitor/pull/99",
            usage={"prompt_tokens": 10, "completion_tokens": 2, **reasoned(317)},
            bill=10 * 1000 + 319 * 2000,
        ),
        Row(
            quirk="a prompt of 200,000 tokens and more, for Grok 4.6 ($4, $12)",
            rule="bills the whole prompt and the answer at the rates for long prompts",
            source="https://docs.x.ai/docs/models",
            price=Published("grok-4.6", {"input_tokens": 250_000, "output_tokens": 100}),
            usage=tokens(250_000, 100),
            bill=250_000 * 4000 + 100 * 12_000,
        ),
        Row(
            quirk="usage in every chunk of a stream (older models)",
            rule="bills only the last usage",
            source="https://github.com/M-Lai-ai/LLM-Provider-reference",
            shape=on_every_chunk,
            usage=tokens(38, 4, **cached(0, text_tokens=38, audio_tokens=0, image_tokens=0)),
            bill=38 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="after the chunk with the usage, a chunk without choices and without usage",
            rule="passes it on, and keeps the usage",
            source="https://github.com/BerriAI/litellm/issues/17136",
            usage=tokens(18, 4),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "usage": tokens(18, 4)},
                {"choices": []},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
    ),
)
