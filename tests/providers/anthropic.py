"""The OpenAI-compatible API of Anthropic."""

from __future__ import annotations

from providers.rows import (
    WORDS,
    Provider,
    Published,
    Row,
    delta_chunk,
    finish_chunk,
    on_a_last_chunk,
    tokens,
)

_DOCS = "https://docs.anthropic.com/en/api/openai-sdk"
_CACHING = "https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching"
_NO_DETAILS = {"prompt_tokens_details": None, "completion_tokens_details": None}
_OWN_NAMES = {"input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 1900}

PROVIDER = Provider(
    name="Anthropic",
    cached="no details. In Anthropic's field names, `input_tokens` excludes them",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk without choices, if requested",
    source=_DOCS,
    shape=on_a_last_chunk,
    note=(
        "The OpenAI-compatible API does not cache prompts, and its usage has no details. Gateways "
        "use the field names of Anthropic's own API."
    ),
    rows=(
        Row(
            quirk="usage without details, at the published price of Claude Sonnet 4.5 ($3, $15)",
            rule="bills the prompt and the answer",
            source=_DOCS,
            price=Published("claude-sonnet-4-5", {"input_tokens": 1000, "output_tokens": 100}),
            usage=tokens(1000, 100, **_NO_DETAILS),
            bill=1000 * 3000 + 100 * 15_000,
        ),
        Row(
            quirk="a prompt above 200,000 tokens ($6, $22.50)",
            rule="bills the whole prompt and the answer at the rates for long prompts",
            source="https://docs.anthropic.com/en/docs/about-claude/pricing",
            price=Published("claude-sonnet-4-5", {"input_tokens": 250_000, "output_tokens": 100}),
            usage=tokens(250_000, 100, **_NO_DETAILS),
            bill=250_000 * 6000 + 100 * 22_500,
        ),
        Row(
            quirk="Anthropic's field names, with cached and written tokens ($0.30 and $3.75)",
            rule="adds them to `input_tokens`, which excludes them",
            source=_CACHING,
            price=Published(
                "claude-sonnet-4-5",
                {
                    "input_tokens": 2500,
                    "cache_read_tokens": 1900,
                    "cache_write_tokens": 500,
                    "output_tokens": 10,
                },
            ),
            usage={**_OWN_NAMES, "cache_creation_input_tokens": 500},
            bill=100 * 3000 + 1900 * 300 + 500 * 3750 + 10 * 15_000,
        ),
        Row(
            quirk="Anthropic's field names, with tokens cached for an hour ($6)",
            rule="bills them at the price for an hour",
            source=_CACHING,
            price=Published(
                "claude-sonnet-4-5",
                {
                    "input_tokens": 2500,
                    "cache_read_tokens": 1900,
                    "cache_write_tokens": 500,
                    "cache_write_1h_tokens": 300,
                    "output_tokens": 10,
                },
            ),
            usage={
                **_OWN_NAMES,
                "cache_creation_input_tokens": 500,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 200,
                    "ephemeral_1h_input_tokens": 300,
                },
            },
            bill=100 * 3000 + 1900 * 300 + 200 * 3750 + 300 * 6000 + 10 * 15_000,
        ),
        Row(
            quirk="the prompt at the start of a stream, and the answer at its end",
            rule="adds both, and the cached tokens",
            source="https://docs.anthropic.com/en/docs/build-with-claude/streaming",
            price=Published(
                "claude-sonnet-4-5",
                {"input_tokens": 2000, "cache_read_tokens": 1900, "output_tokens": 10},
            ),
            usage=_OWN_NAMES,
            chunks=(
                {
                    **delta_chunk({"role": "assistant", "content": ""}),
                    "usage": {**_OWN_NAMES, "output_tokens": 1},
                },
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "usage": {"output_tokens": 10}},
            ),
            bill=100 * 3000 + 1900 * 300 + 10 * 15_000,
        ),
    ),
)
