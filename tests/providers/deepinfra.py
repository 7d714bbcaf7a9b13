"""DeepInfra."""

from __future__ import annotations

from providers.rows import Provider, Row, on_a_last_chunk, tokens

_CHAT = "https://docs.deepinfra.com/chat/overview"

PROVIDER = Provider(
    name="DeepInfra",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="yes, in `usage.estimated_cost`",
    streams="in a last chunk, if requested",
    source=_CHAT,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="the cost in `estimated_cost`, with an exponent",
            rule="bills it",
            source="https://github.com/M-Lai-ai/LLM-Provider-reference/blob/main/DeepInfra.md",
            usage=tokens(48, 200, estimated_cost=9.68e-05),
            bill=96_800,
        ),
        Row(
            quirk="`estimated_cost: null`",
            rule="bills the tokens",
            source=_CHAT,
            usage=tokens(15, 16, estimated_cost=None),
            bill=15 * 1000 + 16 * 2000,
        ),
    ),
)
