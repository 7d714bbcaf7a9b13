"""Ollama."""

from __future__ import annotations

from providers.rows import (
    COUNTED,
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    cached,
    on_a_last_chunk,
    tokens,
    without_usage,
)

_DOCS = "https://docs.ollama.com/api/openai-compatibility"

PROVIDER = Provider(
    name="Ollama",
    cached="yes",
    reasoning="in `completion_tokens`, without details",
    cost="no",
    streams="in a last chunk without choices, if requested; none in old versions",
    source=_DOCS,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="`prompt_tokens: 0`, if the prompt was cached (old versions)",
            rule="bills an estimate of the prompt",
            source="https://github.com/ollama/ollama/issues/5370",
            usage=tokens(0, 4),
            bill=ESTIMATED * 1000 + 4 * 2000,
        ),
        Row(
            quirk="zeros for all counts, after some text",
            rule="bills the tokens that it counted",
            source="https://github.com/ollama/ollama/issues/5370",
            usage=tokens(0, 0),
            bill=COUNTED,
        ),
        Row(
            quirk="zeros for all counts, from a model with price 0",
            rule="bills nothing",
            source=_DOCS,
            price={"prompt": "0", "completion": "0"},
            usage=tokens(0, 0),
            bill=0,
        ),
        Row(
            quirk="cached tokens (version 0.33 and later)",
            rule="bills them at the price of a cache read",
            source="https://github.com/stdapi-ai/stdapi.ai/issues/252",
            usage=tokens(2000, 10, **cached(1900)),
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
        Row(
            quirk="no usage in a stream (old versions), and the reasoning in `reasoning`",
            rule="bills the tokens that it counted, reasoning included",
            source="https://github.com/ollama/ollama/issues/4448",
            message={"content": "".join(WORDS[:2]), "reasoning": "".join(WORDS[2:])},
            deltas=(
                *({"content": "", "reasoning": word} for word in WORDS[2:]),
                *({"content": word} for word in WORDS[:2]),
            ),
            shape=without_usage,
            bill=COUNTED,
        ),
    ),
)
