"""Databricks (Foundation Model APIs)."""

from __future__ import annotations

from collections.abc import Sequence

from providers.rows import (
    Chunk,
    Fields,
    Provider,
    Row,
    delta_chunk,
    finish_chunk,
    on_every_chunk,
    tokens,
)

_DOCS = "https://docs.databricks.com/aws/machine-learning/foundation-model-apis/api-reference"


def _prompt_first(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """The prompt alone on each chunk, and the whole usage on the last one."""
    assert usage is not None
    prompt = {"prompt_tokens": 15, "completion_tokens": None, "total_tokens": None}
    pieces = [{**delta_chunk(delta), "usage": prompt} for delta in deltas]
    return [*pieces, {**finish_chunk(), "usage": usage}]


PROVIDER = Provider(
    name="Databricks",
    cached="yes",
    reasoning="in `completion_tokens`",
    cost="no",
    streams="in every chunk. Some endpoints refuse `stream_options`, which is then left out",
    source=_DOCS,
    shape=on_every_chunk,
    rows=(
        Row(
            quirk="usage in every chunk of a stream, as a running total",
            rule="bills only the last one",
            source="https://github.com/databricks/databricks-ai-bridge/pull/176",
            usage=tokens(32, 4),
            bill=32 * 1000 + 4 * 2000,
        ),
        Row(
            quirk="chunks with the prompt alone, and `completion_tokens: null`",
            rule="bills the whole usage of the last chunk",
            source="https://github.com/spiceai/spiceai/issues/6600",
            shape=_prompt_first,
            usage=tokens(15, 345),
            bill=15 * 1000 + 345 * 2000,
        ),
    ),
)
