"""OpenAI."""

from __future__ import annotations

from providers.rows import (
    LIST,
    WORDS,
    Chunk,
    Fields,
    Provider,
    Published,
    Row,
    cached,
    delta_chunk,
    failed_choice,
    finish_chunk,
    on_a_last_chunk,
    reasoned,
    tokens,
)

_CACHING = "https://platform.openai.com/docs/guides/prompt-caching"
_REASONING = "https://platform.openai.com/docs/guides/reasoning"
_PREDICTED = "https://platform.openai.com/docs/guides/predicted-outputs"
_CHAT = "https://platform.openai.com/docs/api-reference/chat"
_ARGUMENTS = ('{"city": ', '"Paris"}')

_COUNTS = {"input_tokens": 2000, "cache_read_tokens": 1000, "output_tokens": 100}
_FLEX = Published("gpt-5", _COUNTS, {"service_tier": "flex"})
_PRIORITY = Published("gpt-5", _COUNTS, {"service_tier": "priority"})
_DEFAULT = Published("gpt-5", _COUNTS)


def _in_tier(tier: str, usage: Fields) -> list[Chunk]:
    """A stream, with the tier on each chunk."""
    chunks = [*(delta_chunk({"content": word}) for word in WORDS), finish_chunk()]
    return [{**each, "service_tier": tier} for each in [*chunks, {"choices": [], "usage": usage}]]


PROVIDER = Provider(
    name="OpenAI",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk without choices, if requested",
    source=_CHAT,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="cached tokens, at the published price of gpt-4o ($2.50, $1.25 cached, $10)",
            rule="bills them at the price of a cache read",
            source=_CACHING,
            price=Published(
                "gpt-4o", {"input_tokens": 2006, "cache_read_tokens": 1920, "output_tokens": 300}
            ),
            usage=tokens(2006, 300, **cached(1920, audio_tokens=0), **reasoned(0)),
            bill=86 * 2500 + 1920 * 1250 + 300 * 10_000,
        ),
        Row(
            quirk='`service_tier: "flex"`, for GPT-5 (half of $1.25, $0.125 cached and $10)',
            rule="bills the price of the tier that the answer names",
            source="https://platform.openai.com/docs/guides/flex-processing",
            price=_FLEX,
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(WORDS)},
                        "finish_reason": "stop",
                    }
                ],
                "usage": tokens(2000, 100, **cached(1000)),
                "service_tier": "flex",
            },
            chunks=_in_tier("flex", tokens(2000, 100, **cached(1000))),
            bill=1000 * 625 + 1000 * 125 // 2 + 100 * 5000,
        ),
        Row(
            quirk='`service_tier: "priority"`, for GPT-5 (twice the usual price)',
            rule="bills the price of the tier that the answer names",
            source="https://platform.openai.com/docs/guides/priority-processing",
            price=_PRIORITY,
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(WORDS)},
                        "finish_reason": "stop",
                    }
                ],
                "usage": tokens(2000, 100, **cached(1000)),
                "service_tier": "priority",
            },
            chunks=_in_tier("priority", tokens(2000, 100, **cached(1000))),
            bill=1000 * 2500 + 1000 * 250 + 100 * 20_000,
        ),
        Row(
            quirk="the call asks for `flex`, and the answer names `default`",
            rule="bills the usual price",
            source="https://github.com/BerriAI/litellm/issues/31837",
            price=_DEFAULT,
            usage=tokens(2000, 100, **cached(1000)),
            chunks=_in_tier("default", tokens(2000, 100, **cached(1000))),
            bill=1000 * 1250 + 1000 * 125 + 100 * 10_000,
        ),
        Row(
            quirk="cached tokens",
            rule="bills them at the price of a cache read",
            source=_CACHING,
            usage=tokens(2000, 10, **cached(1900)),
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
        Row(
            quirk="tokens written to the cache (GPT-5.6 and later), with a price ($1.25)",
            rule="bills them at the price of a cache write, as part of the prompt",
            source="https://github.com/Arize-ai/openinference/pull/3382",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(2000, 10, **cached(500, cache_write_tokens=1000)),
            bill=500 * 1000 + 500 * 100 + 1000 * 1250 + 10 * 2000,
        ),
        Row(
            quirk="reasoning tokens",
            rule="counts them once, as part of the answer",
            source=_REASONING,
            usage=tokens(100, 50, **reasoned(40)),
            bill=100 * 1000 + 50 * 2000,
        ),
        Row(
            quirk="rejected tokens of a predicted output",
            rule="counts them once, as part of the answer",
            source=_PREDICTED,
            usage=tokens(
                100,
                60,
                **reasoned(0, accepted_prediction_tokens=10, rejected_prediction_tokens=20),
            ),
            bill=100 * 1000 + 60 * 2000,
        ),
        Row(
            quirk="audio tokens in the answer, with a price ($40)",
            rule="bills them at their price",
            source=_CHAT,
            price={**LIST, "audio_output": "0.00004"},
            usage=tokens(50, 100, **reasoned(0, audio_tokens=80)),
            bill=50 * 1000 + 20 * 2000 + 80 * 40_000,
        ),
        Row(
            quirk="field names of the Responses API, from a gateway",
            rule="reads them, too",
            source="https://platform.openai.com/docs/api-reference/responses",
            usage={
                "input_tokens": 2000,
                "input_tokens_details": {"cached_tokens": 1900},
                "output_tokens": 10,
                "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 2010,
            },
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
        Row(
            quirk="`obfuscation`, random text in each chunk of a stream",
            rule="passes it on, and does not count it",
            source=_CHAT,
            chunks=(
                *(
                    {**delta_chunk({"content": word}), "obfuscation": "a1b2c3d4e5f6g7h8"}
                    for word in WORDS
                ),
                {**finish_chunk(), "obfuscation": "i9"},
            ),
            bill=11 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="a tool call with arguments in several chunks",
            rule="passes them on unchanged",
            source=_CHAT,
            message={
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": "".join(_ARGUMENTS)},
                    }
                ],
            },
            deltas=(
                {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": ""},
                        }
                    ]
                },
                *(
                    {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                    for piece in _ARGUMENTS
                ),
            ),
            usage=tokens(60, 14),
            bill=60 * 1000 + 14 * 2000,
        ),
        Row(
            quirk="a refusal instead of content",
            rule="passes it on",
            source=_CHAT,
            message={"content": None, "refusal": "".join(WORDS)},
            deltas=tuple({"refusal": word} for word in WORDS),
            bill=11 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="impossible usage: more cached tokens than prompt tokens",
            rule="ignores that part",
            source=_CHAT,
            usage=tokens(100, 10, **cached(1900)),
            bill=100 * 1000 + 10 * 2000,
        ),
        Row(
            quirk="an answer without a choice, with status 200",
            rule="answers 502, and bills nothing",
            source="https://github.com/openai/openai-python/issues/1266",
            answer={"choices": [], "usage": tokens(18, 0)},
            chunks=({"choices": [], "usage": tokens(18, 0)},),
            fails=True,
            bill=0,
        ),
        Row(
            quirk='`finish_reason: "error"` after some words, and no usage',
            rule="answers 502, and bills the tokens that it counted",
            source=_CHAT,
            answer=failed_choice(None),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
            ),
            fails=True,
            bill=11 * 1000 + 2 * 2000,
        ),
    ),
)
