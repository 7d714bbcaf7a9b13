"""vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from providers.rows import (
    Chunk,
    Fields,
    Provider,
    Row,
    cached,
    finish_chunk,
    on_a_last_chunk,
    on_every_chunk,
    reasoned,
    tokens,
)

_DOCS = "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"


def _continuous(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """On each chunk, starting with the empty first one, and on a last one without choices."""
    *counted, _ = on_every_chunk(deltas, usage)
    last = finish_chunk(stop_reason=None, token_ids=None)
    return [*counted, {**last, "usage": usage}, {"choices": [], "usage": usage}]


PROVIDER = Provider(
    name="vLLM",
    cached="yes, if it runs with `--enable-prompt-tokens-details`",
    reasoning="in `completion_tokens`",
    cost="no",
    streams=(
        "in a last chunk without choices, if requested; in every chunk with "
        "`continuous_usage_stats`"
    ),
    source=_DOCS,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="usage in every chunk of a stream, starting at 0 tokens",
            rule="bills only the last usage",
            source="https://github.com/vllm-project/vllm/issues/7262",
            shape=_continuous,
            usage=tokens(16, 4, prompt_tokens_details=None),
            bill=16 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="cached tokens, and details that are null",
            rule="bills the cached tokens at the price of a cache read",
            source="https://github.com/BerriAI/litellm/issues/22984",
            usage=tokens(
                150_383,
                304,
                **cached(149_936, text_tokens=None, audio_tokens=None, image_tokens=None),
                **reasoned(15, text_tokens=None, accepted_prediction_tokens=None),
            ),
            bill=447 * 1000 + 149_936 * 100 + 304 * 2000,
        ),
    ),
)
