"""Cohere."""

from __future__ import annotations

from providers.rows import Provider, Row, on_a_last_chunk

_USAGE = "https://github.com/pydantic/genai-prices/pull/453"

PROVIDER = Provider(
    name="Cohere",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams=(
        "in a last chunk, if requested; before August 2025, it refused `stream_options`, which the "
        "service then leaves out"
    ),
    source="https://docs.cohere.com/docs/compatibility-api",
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="`billed_units` and `tokens`, from a gateway",
            rule="bills `billed_units`, which are what Cohere charges",
            source=_USAGE,
            usage={
                "billed_units": {"input_tokens": 10.0, "output_tokens": 20.0},
                "tokens": {"input_tokens": 110.0, "output_tokens": 25.0},
            },
            bill=10 * 1000 + 20 * 2000,
        ),
    ),
)
