"""Zhipu (GLM)."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    Provider,
    Row,
    cached,
    failed_with,
    on_the_finish_chunk,
    tokens,
)

_CHAT = "https://docs.z.ai/guides/develop/openai/python"

PROVIDER = Provider(
    name="Zhipu",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in the chunk with the finish reason",
    source=_CHAT,
    shape=on_the_finish_chunk,
    rows=(
        Row(
            quirk="cached tokens",
            rule="bills them at the price of a cache read",
            source="https://github.com/langgenius/dify-plugin-sdks/issues/188",
            usage=tokens(15_427, 139, **cached(170)),
            bill=15_257 * 1000 + 170 * 100 + 139 * 2000,
        ),
        Row(
            quirk='`finish_reason: "network_error"`, with status 200',
            rule="answers 502, and bills the reported usage; for a stream, the tokens sent so far",
            source="https://github.com/BerriAI/litellm/pull/24373",
            **failed_with("network_error"),
            fails=True,
            bill=18 * 1000 + 2 * 2000,
            stream_bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
