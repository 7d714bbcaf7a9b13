"""Azure OpenAI."""

from __future__ import annotations

from providers.rows import (
    WORDS,
    Provider,
    Published,
    Row,
    cached,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    reasoned,
    tokens,
)

_DOCS = "https://learn.microsoft.com/en-us/azure/ai-services/openai/concepts/content-filter"
_SAFE = {"hate": {"filtered": False, "severity": "safe"}}
_PROMPT = [{"prompt_index": 0, "content_filter_results": _SAFE}]
_EMPTY = {"id": "", "object": "", "created": 0, "model": "", "choices": []}

PROVIDER = Provider(
    name="Azure OpenAI",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk without choices, if requested",
    source=_DOCS,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="the first chunk has `prompt_filter_results`, and no choice",
            rule="passes it on, and reads the usage in the last chunk",
            source="https://github.com/AbanteAI/archive-old-cli-mentat/issues/429",
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(WORDS)},
                        "finish_reason": "stop",
                        "content_filter_results": _SAFE,
                    }
                ],
                "prompt_filter_results": _PROMPT,
                "usage": tokens(18, 4),
            },
            chunks=(
                {**_EMPTY, "prompt_filter_results": _PROMPT},
                *(delta_chunk({"content": word}, content_filter_results=_SAFE) for word in WORDS),
                finish_chunk(content_filter_results={}),
                {"choices": [], "usage": tokens(18, 4)},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="a chunk with the results of the filter, and a choice that has no delta",
            rule="passes it on, and does not count it",
            source="https://github.com/microsoft/autogen/issues/6465",
            usage=tokens(18, 4),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                {
                    **_EMPTY,
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": None,
                            "content_filter_results": _SAFE,
                            "content_filter_offsets": {"check_offset": 44, "end_offset": 198},
                        }
                    ],
                    "usage": None,
                },
                finish_chunk(),
                {"choices": [], "usage": tokens(18, 4)},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="cached tokens, at the published price of gpt-4o",
            rule="bills them at the price of a cache read",
            source="https://learn.microsoft.com/en-us/azure/ai-services/openai/how-to/prompt-caching",
            price=Published(
                "gpt-4o", {"input_tokens": 1408, "cache_read_tokens": 1280, "output_tokens": 20}
            ),
            usage=tokens(1408, 20, **cached(1280, audio_tokens=0), **reasoned(0)),
            bill=128 * 2500 + 1280 * 1250 + 20 * 10_000,
        ),
        Row(
            quirk="`usage: null` in every chunk, from an old version of the API",
            rule="bills the tokens that it counted",
            source="https://github.com/sashabaranov/go-openai/pull/448",
            usage=tokens(18, 4),
            chunks=(
                {**_EMPTY, "prompt_annotations": _PROMPT, "usage": None},
                *({**delta_chunk({"content": word}), "usage": None} for word in WORDS),
                {**finish_chunk(), "usage": None},
            ),
            bill=18 * 1000 + 4 * 2000,
            stream_bill=11 * 1000 + 4 * 2000,
        ),
    ),
)
