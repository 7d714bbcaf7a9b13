"""Defines a row of the provider table, and how the usual streams are made from it.

A row describes one quirk: what the provider sends, what the service does with it, and the bill.
:mod:`.test_bills` runs each row, as an answer and as a stream. :mod:`.page` writes
``docs/providers.md`` from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: $1 and $2 for a million tokens, $0.10 for a million cached ones. A prompt token costs 1000
#: nano-dollars, a completion token 2000, a cached token 100.
LIST: Mapping[str, Any] = {
    "prompt": "0.000001",
    "completion": "0.000002",
    "input_cache_read": "0.0000001",
}
#: The test's prompt. If no usage is reported, the service counts it as this many tokens.
QUESTION = "one two three"
ESTIMATED = 11
#: The models' answer. Each word has 4 bytes, so the service counts it as one token.
WORDS = ("one ", "two ", "six ", "ten ")
#: The bill at the prices of :data:`LIST` if no usage is reported.
COUNTED = ESTIMATED * 1000 + len(WORDS) * 2000

Fields = Mapping[str, Any]
Chunk = Fields | str
"""A chunk of a stream; as text, a line that is no chunk, such as a comment."""
Shape = Callable[[Sequence[Fields], Fields | None], "list[Chunk]"]
"""Makes the chunks of a stream from its deltas and the usage."""


@dataclass(frozen=True)
class Published:
    """The list has no price, so the published price applies.

    Attributes:
        model: its name in ``genai-prices``.
        tokens: the row's usage in the names of ``genai-prices``.
        context: the other conditions of the price, in its names.
    """

    model: str
    tokens: Mapping[str, int]
    context: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quirk.

    Attributes:
        quirk: what the provider does.
        rule: what the service does with it.
        source: where it is documented, or who found it: a URL.
        bill: what the user is billed, in nano-dollars.
        stream_bill: the same for the stream, if it is another amount.
        usage: the usage object; None if there is none.
        price: the model's ``pricing`` in the upstream's list.
        message: the message of the whole answer.
        deltas: the same in pieces.
        shape: where a stream has the usage; None for the usual place of the provider.
        answer: the whole answer, if it has more than a message and the usage.
        chunks: the whole stream, if no shape fits.
        headers: more HTTP headers of the whole answer.
        fails: True for a failure. The client then gets a 502 or an error event.
    """

    quirk: str
    rule: str
    source: str
    bill: int
    stream_bill: int | None = None
    usage: Fields | None = None
    price: Fields | Published = field(default_factory=lambda: LIST)
    message: Fields = field(default_factory=lambda: {"content": "".join(WORDS)})
    deltas: Sequence[Fields] = tuple({"content": word} for word in WORDS)
    shape: Shape | None = None
    answer: Fields | None = None
    chunks: Sequence[Chunk] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    fails: bool = False


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A provider, and what is known about it.

    Attributes:
        name: the name that the provider uses.
        cached: whether the cached tokens are a part of ``prompt_tokens``.
        reasoning: where reasoning is counted.
        cost: whether an answer has its cost.
        streams: where a stream has the usage.
        source: its own documentation, a URL.
        shape: makes its usual stream.
        note: what else an operator should know.
    """

    name: str
    cached: str
    reasoning: str
    cost: str
    streams: str
    source: str
    shape: Shape
    rows: Sequence[Row]
    note: str = ""


def answer_of(row: Row) -> dict[str, Any]:
    """The whole answer."""
    if row.answer is not None:
        return {**_HEAD, "object": "chat.completion", **row.answer}
    message = {"role": "assistant", **row.message}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {} if row.usage is None else {"usage": row.usage}
    return {**_HEAD, "object": "chat.completion", "choices": choices, **usage}


def stream_of(provider: Provider, row: Row) -> list[Chunk]:
    """The chunks of the stream without its ``[DONE]``."""
    chunks = row.chunks
    if chunks is None:
        chunks = (row.shape or provider.shape)(row.deltas, row.usage)
    return [chunk if isinstance(chunk, str) else {**_IN_CHUNKS, **chunk} for chunk in chunks]


_HEAD = {"id": "chatcmpl-1", "created": 1796000000, "model": "m"}
_IN_CHUNKS = {**_HEAD, "object": "chat.completion.chunk"}


# -- the formats of streams


def delta_chunk(delta: Fields, **more: Any) -> dict[str, Any]:
    """A chunk with a piece of the answer.

    Args:
        more: more fields of its choice.
    """
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}


def finish_chunk(**more: Any) -> dict[str, Any]:
    """The chunk with the finish reason.

    Args:
        more: more fields of its choice.
    """
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **more}]}


def _pieces(deltas: Sequence[Fields]) -> list[dict[str, Any]]:
    return [delta_chunk({"role": "assistant", "content": ""}), *map(delta_chunk, deltas)]


def on_a_last_chunk(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """OpenAI's format: null on each chunk, then a chunk with the usage and no choice."""
    if usage is None:
        return without_usage(deltas, usage)
    chunks = [{**chunk, "usage": None} for chunk in (*_pieces(deltas), finish_chunk())]
    return [*chunks, {"choices": [], "usage": usage}]


def on_the_finish_chunk(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """With the finish reason."""
    return [*_pieces(deltas), {**finish_chunk(), "usage": usage}]


def on_every_chunk(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """On each chunk, with the count so far."""
    assert usage is not None
    prompt = usage["prompt_tokens"]
    chunks: list[Chunk] = []
    for passed, chunk in enumerate(_pieces(deltas)):
        so_far = {"prompt_tokens": prompt, "completion_tokens": passed}
        chunks.append({**chunk, "usage": {**so_far, "total_tokens": prompt + passed}})
    return [*chunks, {**finish_chunk(), "usage": usage}]


def in_the_choice(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """In the choice that has the finish reason."""
    return [*_pieces(deltas), finish_chunk(usage=usage)]


def under_its_own_name(name: str) -> Shape:
    """Under the provider's own name, with the finish reason: ``{name: {"usage": …}}``."""

    def shape(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
        return [*_pieces(deltas), {**finish_chunk(), name: {"id": "req_1", "usage": usage}}]

    return shape


def without_usage(deltas: Sequence[Fields], usage: Fields | None) -> list[Chunk]:
    """The stream has no usage, even if the whole answer has one."""
    return [*_pieces(deltas), finish_chunk()]


# -- values that several providers share


def tokens(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    """A usage in OpenAI's names.

    Args:
        more: more fields, or ``total_tokens`` if it is not the sum.
    """
    total = {"total_tokens": prompt + completion}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **total, **more}


def cached(count: int, **more: Any) -> dict[str, Any]:
    """The detail with the number of tokens from the cache.

    Args:
        more: more details.
    """
    return {"prompt_tokens_details": {"cached_tokens": count, **more}}


def reasoned(count: int, **more: Any) -> dict[str, Any]:
    """The detail with the number of reasoning tokens.

    Args:
        more: more details.
    """
    return {"completion_tokens_details": {"reasoning_tokens": count, **more}}


def failed_with(reason: str) -> dict[str, Any]:
    """An answer and a stream of two words, which end with this reason of a failure."""
    message = {"role": "assistant", "content": "".join(WORDS[:2])}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return {
        "answer": {
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": tokens(18, 2),
        },
        "chunks": (*(delta_chunk({"content": word}) for word in WORDS[:2]), end),
    }


def failed_choice(error: Fields | None, **usage: Any) -> dict[str, Any]:
    """A whole answer whose choice failed after two words.

    Args:
        usage: the fields of the usage; none for an answer without one.
    """
    message = {"role": "assistant", "content": "".join(WORDS[:2])}
    choice = {"index": 0, "message": message, "finish_reason": "error", "error": error}
    return {"choices": [choice], **({"usage": usage} if usage else {})}
