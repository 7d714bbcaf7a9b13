"""Moonshot (Kimi)."""

from __future__ import annotations

from providers.rows import (
    WORDS,
    Provider,
    Published,
    Row,
    delta_chunk,
    finish_chunk,
    in_the_choice,
    tokens,
)

PROVIDER = Provider(
    name="Moonshot",
    cached="yes, as `usage.cached_tokens`",
    reasoning="in `completion_tokens`, without details",
    cost="no",
    streams="in the choice with the finish reason; also in a last chunk, if requested",
    source="https://platform.moonshot.ai/docs/api/chat",
    shape=in_the_choice,
    rows=(
        Row(
            quirk="the usage of a stream is in the choice",
            rule="reads it there",
            source="https://github.com/northes/go-moonshot/issues/17",
            usage=tokens(19, 13),
            bill=19 * 1000 + 13 * 2000,
        ),
        Row(
            quirk="the usage in the choice, and again in a last chunk",
            rule="bills it once",
            source="https://github.com/NorthlandPositronics/Cogtrix/issues/2376",
            usage=tokens(19, 13),
            chunks=(
                *(delta_chunk({"content": word}) for word in WORDS),
                finish_chunk(usage=tokens(19, 13)),
                {"choices": [], "usage": tokens(19, 13)},
            ),
            bill=19 * 1000 + 13 * 2000,
        ),
        Row(
            quirk=(
                "`cached_tokens` next to the other counts, at the published price of Kimi K2 "
                "($0.60, $0.15 cached, $2.50)"
            ),
            rule="bills them at the price of a cache read",
            source="https://github.com/vercel/ai/pull/12352",
            price=Published(
                "kimi-k2-0905-preview",
                {"input_tokens": 2000, "cache_read_tokens": 1900, "output_tokens": 10},
            ),
            usage=tokens(2000, 10, cached_tokens=1900),
            bill=100 * 600 + 1900 * 150 + 10 * 2500,
        ),
    ),
)
