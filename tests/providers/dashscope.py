"""DashScope (Qwen)."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    LIST,
    WORDS,
    Provider,
    Row,
    delta_chunk,
    failed_choice,
    on_a_last_chunk,
    tokens,
)

_CACHE = "https://www.alibabacloud.com/help/en/model-studio/context-cache"
_ERRORS = "https://www.alibabacloud.com/help/en/model-studio/error-code"
_SEARCH = "https://www.alibabacloud.com/help/en/model-studio/web-search"

PROVIDER = Provider(
    name="DashScope",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk, if requested",
    source=_CACHE,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="written tokens inside `prompt_tokens_details` ($1.25)",
            rule="bills them at `input_cache_write`",
            source="https://github.com/dashscope/dashscope-sdk-java/issues/214",
            price={**LIST, "input_cache_write": "0.00000125"},
            usage=tokens(
                100,
                2,
                prompt_tokens_details={
                    "cached_tokens": 0,
                    "cache_creation_input_tokens": 90,
                    "cache_creation": {"ephemeral_5m_input_tokens": 90},
                    "cache_type": "ephemeral",
                },
            ),
            bill=10 * 1000 + 90 * 1250 + 2 * 2000,
        ),
        Row(
            quirk="web searches in `plugins.search.count` ($0.01)",
            rule="bills each search",
            source=_SEARCH,
            price={**LIST, "web_search": "0.01"},
            usage=tokens(10, 2, plugins={"search": {"count": 2, "strategy": "agent"}}),
            bill=10 * 1000 + 2 * 2000 + 2 * 10_000_000,
        ),
        Row(
            quirk="`code` and `message` of an error after some words, with status 200",
            rule="answers 502, and bills the reported usage; for a stream, the tokens sent so far",
            source=_ERRORS,
            answer=failed_choice({"code": "InternalError"}, **tokens(ESTIMATED, 2)),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                {"code": "InternalError", "message": "Internal error.", "request_id": "req_1"},
            ),
            fails=True,
            bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
