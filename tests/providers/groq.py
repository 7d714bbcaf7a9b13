"""Groq."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    cached,
    delta_chunk,
    failed_choice,
    finish_chunk,
    reasoned,
    tokens,
    under_its_own_name,
)

_DOCS = "https://console.groq.com/docs/api-reference"
_USAGE = tokens(18, 4, queue_time=0.018, prompt_time=0.0005, completion_time=0.01, total_time=0.03)

PROVIDER = Provider(
    name="Groq",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in `x_groq.usage`; also in a last chunk without choices, if requested",
    source=_DOCS,
    shape=under_its_own_name("x_groq"),
    rows=(
        Row(
            quirk="the usage of a stream is in `x_groq`",
            rule="reads it there",
            source="https://github.com/Helicone/helicone/pull/3497",
            usage=_USAGE,
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="the usage in `x_groq`, and again in a last chunk",
            rule="bills it once",
            source="https://github.com/Portkey-AI/gateway/issues/1338",
            usage=_USAGE,
            chunks=(
                {**delta_chunk({"role": "assistant", "content": ""}), "x_groq": {"id": "req_1"}},
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "x_groq": {"id": "req_1", "usage": _USAGE}},
                {"choices": [], "usage": _USAGE},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="cached tokens",
            rule="bills them at the price of a cache read",
            source="https://github.com/langchain-ai/langchain/pull/33708",
            usage=tokens(2006, 300, **cached(1920)),
            bill=86 * 1000 + 1920 * 100 + 300 * 2000,
        ),
        Row(
            quirk="reasoning tokens, and the reasoning text next to the content",
            rule="counts them once, as part of the answer",
            source="https://github.com/BerriAI/litellm/issues/16129",
            message={"content": "".join(WORDS[:2]), "reasoning": "".join(WORDS[2:])},
            deltas=(
                *({"reasoning": word, "channel": "analysis"} for word in WORDS[2:]),
                *({"content": word} for word in WORDS[:2]),
            ),
            usage=tokens(80, 50, **reasoned(40)),
            bill=80 * 1000 + 50 * 2000,
        ),
        Row(
            quirk="an error in `x_groq` after some words of a stream",
            rule="sends an error event, and bills the tokens sent so far",
            source="https://github.com/groq/groq-python/blob/main/src/groq/types/chat/chat_completion_chunk.py",
            answer=failed_choice({"message": "over capacity"}, **tokens(ESTIMATED, 2)),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                {**delta_chunk({}), "x_groq": {"id": "req_1", "error": "over capacity"}},
            ),
            fails=True,
            bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
