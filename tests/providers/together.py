"""Together."""

from __future__ import annotations

from providers.rows import WORDS, Provider, Row, delta_chunk, on_the_finish_chunk, tokens

_DOCS = "https://docs.together.ai/reference/chat-completions-1"

PROVIDER = Provider(
    name="Together",
    cached="yes, as `usage.cached_tokens`",
    reasoning="in `completion_tokens`, without details",
    cost="no",
    streams="with the finish reason, always",
    source=_DOCS,
    shape=on_the_finish_chunk,
    note=(
        "In Together's list of models, the prices `input` and `output` are per million tokens. In "
        "other lists, prices with these names are per token. So the service ignores these prices "
        "and uses the published price."
    ),
    rows=(
        Row(
            quirk="choices with `text`, `token` and a large `seed`, and `finish_reason: eos`",
            rule="passes them on, and counts only the delta",
            source="https://docs.together.ai/docs/chat-overview",
            usage=tokens(18, 4),
            chunks=(
                *(
                    {
                        **delta_chunk(
                            {"role": "assistant", "content": word, "token_id": 330},
                            text=word,
                            logprobs=None,
                            seed=None,
                        ),
                        "usage": None,
                    }
                    for word in WORDS
                ),
                {
                    "choices": [
                        {
                            "index": 0,
                            "text": "",
                            "delta": {"role": "assistant", "content": "", "token_id": 128009},
                            "finish_reason": "eos",
                            "seed": 17446744073709551615,
                        }
                    ],
                    "usage": tokens(18, 4, cached_tokens=0),
                },
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="`cached_tokens` next to the other counts",
            rule="bills them at the price of a cache read",
            source=_DOCS,
            usage=tokens(2000, 10, cached_tokens=1900),
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
    ),
)
