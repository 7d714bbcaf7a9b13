"""Mistral."""

from __future__ import annotations

from providers.rows import (
    COUNTED,
    Provider,
    Published,
    Row,
    cached,
    on_the_finish_chunk,
    tokens,
    without_usage,
)

_DOCS = "https://docs.mistral.ai/api/"
_REASONING = "https://github.com/braintrustdata/braintrust-sdk-javascript/issues/1857"
_THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "one two "}]}
_SAID = {"type": "text", "text": "six ten "}
_CALL = {"id": "D681PevKs", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}

PROVIDER = Provider(
    name="Mistral",
    cached="yes",
    reasoning="in `completion_tokens`, without details",
    cost="no",
    streams="with the finish reason, always",
    source=_DOCS,
    shape=on_the_finish_chunk,
    rows=(
        Row(
            quirk="the usage of a stream is in the chunk with the finish reason",
            rule="reads it there, and passes the chunk on even if the client did not ask for usage",
            source="https://github.com/mistralai/client-python/issues/40",
            usage=tokens(18, 4, prompt_audio_seconds=None),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk=(
                "`content` is a list of `thinking` and `text`, at the published price of "
                "Magistral Medium ($2, $5)"
            ),
            rule="passes it on, and bills the reported tokens",
            source=_REASONING,
            price=Published("magistral-medium-latest", {"input_tokens": 100, "output_tokens": 50}),
            message={"content": [_THOUGHT, _SAID]},
            deltas=({"content": [_THOUGHT]}, {"content": "six ten "}),
            usage=tokens(100, 50),
            bill=100 * 2000 + 50 * 5000,
        ),
        Row(
            quirk="`content` as a list, and no usage",
            rule="counts the text of both types",
            source=_REASONING,
            message={"content": [_THOUGHT, _SAID]},
            deltas=({"content": [_THOUGHT]}, {"content": [_SAID]}),
            shape=without_usage,
            bill=COUNTED,
        ),
        Row(
            quirk="cached tokens",
            rule="bills them at the price of a cache read",
            source="https://github.com/mistralai/client-ts/issues/240",
            usage=tokens(1013, 30, **cached(1008)),
            bill=5 * 1000 + 1008 * 100 + 30 * 2000,
        ),
        Row(
            quirk="cached tokens as `num_cached_tokens`, and in `prompt_token_details`",
            rule="counts them once",
            source="https://github.com/vercel/ai/issues/14382",
            usage=tokens(
                801, 2, num_cached_tokens=768, prompt_token_details={"cached_tokens": 768}
            ),
            bill=33 * 1000 + 768 * 100 + 2 * 2000,
        ),
        Row(
            quirk="`num_cached_tokens` alone",
            rule="bills them at the price of a cache read",
            source="https://github.com/vercel/ai/pull/14889",
            usage=tokens(801, 2, num_cached_tokens=768),
            bill=33 * 1000 + 768 * 100 + 2 * 2000,
        ),
        Row(
            quirk="`prompt_audio_seconds`, and audio tokens only in `total_tokens` (Voxtral)",
            rule="adds them to the prompt, not to the answer",
            source="https://docs.mistral.ai/capabilities/audio_transcription/",
            usage=tokens(4, 635, total_tokens=3264, prompt_audio_seconds=203),
            bill=2629 * 1000 + 635 * 2000,
        ),
        Row(
            quirk="a whole tool call in one chunk, without a type",
            rule="passes it on unchanged",
            source=_DOCS,
            message={"content": "", "tool_calls": [_CALL]},
            deltas=({"content": "", "tool_calls": [{**_CALL, "index": 0}]},),
            usage=tokens(60, 14),
            bill=60 * 1000 + 14 * 2000,
        ),
    ),
)
