"""DeepSeek."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    delta_chunk,
    failed_with,
    finish_chunk,
    on_the_finish_chunk,
    reasoned,
    tokens,
)

_DOCS = "https://api-docs.deepseek.com/api/create-chat-completion"

PROVIDER = Provider(
    name="DeepSeek",
    cached="yes, as `prompt_cache_hit_tokens`",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="with the finish reason, always",
    source=_DOCS,
    shape=on_the_finish_chunk,
    note=(
        "Tokens cost half as much outside of peak hours. The time at which a call began decides "
        "its price. Weekends are off-peak, but the published price does not include this rule. So "
        "the service bills some weekend calls at the peak price."
    ),
    rows=(
        Row(
            quirk="`prompt_cache_hit_tokens` and `prompt_cache_miss_tokens`",
            rule="bills the hits at the price of a cache read",
            source="https://api-docs.deepseek.com/guides/kv_cache",
            usage=tokens(2000, 10, prompt_cache_hit_tokens=1900, prompt_cache_miss_tokens=100),
            bill=100 * 1000 + 1900 * 100 + 10 * 2000,
        ),
        Row(
            quirk="reasoning tokens, and the text of the reasoning in `reasoning_content`",
            rule="counts them once, as part of the answer",
            source="https://api-docs.deepseek.com/guides/reasoning_model",
            message={"content": "".join(WORDS[:2]), "reasoning_content": "".join(WORDS[2:])},
            deltas=(
                *({"content": None, "reasoning_content": word} for word in WORDS[2:]),
                *({"content": word, "reasoning_content": None} for word in WORDS[:2]),
            ),
            usage=tokens(14, 50, **reasoned(40)),
            bill=14 * 1000 + 50 * 2000,
        ),
        Row(
            quirk="comments in a stream: `: keep-alive`",
            rule="passes them on, up to three in a row",
            source="https://github.com/AIProxyTeam/AIProxySwift/pull/95",
            usage=tokens(18, 4),
            chunks=(
                ": keep-alive",
                *(delta_chunk({"content": word}) for word in WORDS),
                {**finish_chunk(), "usage": tokens(18, 4)},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="zeros in the first chunks of a stream, from a gateway",
            rule="ignores them, and bills the last counts",
            source="https://github.com/router-for-me/CLIProxyAPI/pull/3077",
            usage=tokens(18, 4),
            chunks=(
                *({**delta_chunk({"content": word}), "usage": tokens(0, 0)} for word in WORDS),
                {**finish_chunk(), "usage": tokens(18, 4)},
            ),
            bill=18 * 1000 + 4 * 2000,
        ),
        Row(
            quirk='`finish_reason: "insufficient_system_resource"`, with status 200',
            rule="answers 502, and bills the reported usage; for a stream, the tokens sent so far",
            source=_DOCS,
            **failed_with("insufficient_system_resource"),
            fails=True,
            bill=18 * 1000 + 2 * 2000,
            stream_bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
