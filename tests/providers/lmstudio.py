"""LM Studio."""

from __future__ import annotations

from providers.rows import COUNTED, WORDS, Provider, Row, on_a_last_chunk, tokens, without_usage

_DOCS = "https://lmstudio.ai/docs/developer/openai-compat"

PROVIDER = Provider(
    name="LM Studio",
    cached="no details",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="on a last chunk without choices, if requested; none in old versions",
    source=_DOCS,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="no usage in a stream (old versions)",
            rule="bills the tokens that it counted",
            source="https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/676",
            usage=tokens(19, 4),
            shape=without_usage,
            bill=19 * 1000 + 4 * 2000,
            stream_bill=COUNTED,
        ),
        Row(
            quirk="`stats` beside the usage",
            rule="passes them on, and ignores them for the bill",
            source="https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/547",
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(WORDS)},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": tokens(19, 4),
                "stats": {"tokens_per_second": 51.4, "time_to_first_token": 0.11},
            },
            usage=tokens(19, 4),
            bill=19 * 1000 + 4 * 2000,
        ),
    ),
)
