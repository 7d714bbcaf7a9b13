"""Zhipu (GLM)."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    cached,
    delta_chunk,
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
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "one two "},
                        "finish_reason": "network_error",
                    }
                ],
                "usage": tokens(18, 2),
            },
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "network_error"}]},
            ),
            fails=True,
            bill=18 * 1000 + 2 * 2000,
            stream_bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
