"""llama.cpp."""

from __future__ import annotations

from providers.rows import WORDS, Provider, Row, delta_chunk, finish_chunk, on_a_last_chunk

_SERVER = "https://github.com/ggml-org/llama.cpp/pull/15827"
_TIMINGS = {"cache_n": 236, "prompt_n": 1, "prompt_ms": 30.958, "predicted_n": 35}

PROVIDER = Provider(
    name="llama.cpp",
    cached="yes",
    reasoning="in `completion_tokens`, without details",
    cost="no",
    streams="on a last chunk, if requested",
    source=_SERVER,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="only `timings`, where `prompt_n` does not include the cached tokens",
            rule="bills `prompt_n`, `cache_n` and `predicted_n`",
            source=_SERVER,
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
    ),
)
