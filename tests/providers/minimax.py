"""MiniMax."""

from __future__ import annotations

from providers.rows import (
    ESTIMATED,
    WORDS,
    Provider,
    Row,
    delta_chunk,
    failed_choice,
    on_a_last_chunk,
    reasoned,
    tokens,
)

_ERRORS = "https://platform.minimax.io/docs/api-reference/errorcode"
_CHAT = "https://platform.minimax.io/docs/api-reference/text-chat-openai"

PROVIDER = Provider(
    name="MiniMax",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in a last chunk, if requested",
    source=_CHAT,
    shape=on_a_last_chunk,
    rows=(
        Row(
            quirk="reasoning inside `completion_tokens`, and `total_characters`",
            rule="bills the counts as they are",
            source=_CHAT,
            usage=tokens(42, 38, total_characters=0, **reasoned(29)),
            bill=42 * 1000 + 38 * 2000,
        ),
        Row(
            quirk="only `total_tokens`",
            rule="estimates the prompt, and bills the rest of the total as the answer",
            source=_CHAT,
            usage={"total_tokens": 329, "total_characters": 0},
            bill=ESTIMATED * 1000 + (329 - ESTIMATED) * 2000,
        ),
        Row(
            quirk="an error in `base_resp`, with status 200",
            rule="answers 502, and bills nothing",
            source=_ERRORS,
            answer={
                "choices": None,
                "usage": {"total_tokens": 0},
                "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"},
            },
            chunks=(
                {
                    "choices": None,
                    "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"},
                },
            ),
            fails=True,
            bill=0,
        ),
        Row(
            quirk="an error in `base_resp` after some words",
            rule="answers 502, and bills the reported usage; for a stream, the tokens sent so far",
            source=_ERRORS,
            answer={
                **failed_choice(None, **tokens(ESTIMATED, 2)),
                "base_resp": {"status_code": 1013, "status_msg": "internal error"},
            },
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS[:2]),
                {
                    "choices": None,
                    "base_resp": {"status_code": 1013, "status_msg": "internal error"},
                },
            ),
            fails=True,
            bill=ESTIMATED * 1000 + 2 * 2000,
        ),
    ),
)
