"""LM Studio."""

from __future__ import annotations

from providers.rows import (
    COUNTED,
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    delta_chunk,
    failed_choice,
    finish_chunk,
    on_a_last_chunk,
    tokens,
    without_usage,
)

_DOCS = "https://lmstudio.ai/docs/developer/openai-compat"
_TIMINGS_PAGE = "https://github.com/ggml-org/llama.cpp/pull/15827"
_TIMINGS = {"cache_n": 236, "prompt_n": 1, "prompt_ms": 30.958, "predicted_n": 35}

PROVIDER = Provider(
    name="LM Studio",
    cached="no details",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk without choices, if requested; none in old versions",
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
            quirk="`stats` next to the usage",
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
        Row(
            quirk="only llama.cpp's `timings`, whose `prompt_n` does not include the cached tokens",
            rule="bills `prompt_n`, `cache_n` and `predicted_n`",
            source=_TIMINGS_PAGE,
            answer={
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(WORDS)},
                        "finish_reason": "stop",
                    }
                ],
                "timings": _TIMINGS,
            },
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "timings": _TIMINGS},
            ),
            bill=1 * 1000 + 236 * 100 + 35 * 2000,
        ),
        Row(
            quirk="an error of llama.cpp in the field `error:` of a stream, before `[DONE]`",
            rule="sends an error event, and bills the tokens sent so far",
            source="https://github.com/ggml-org/llama.cpp/pull/16109",
            answer=failed_choice({"message": "no context left"}, **tokens(ESTIMATED, 2)),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                'error: {"code":500,"message":"no context left","type":"server_error"}',
            ),
            fails=True,
            bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
