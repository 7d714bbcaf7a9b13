"""Reads OpenRouter's records of generations. A record has the cost of a stream, even if the stream
was not read to its end. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec

from ... import money
from ...types import fields_of
from . import upstream_json

#: The header that names the generation.
_HEADER = "x-generation-id"
#: An id in a header, a chunk or an answer. The ledger has room for 128 characters.
_ID = re.compile(r"gen-[\x21-\x7e]{1,124}")


class _Chunk(msgspec.Struct, gc=False):
    id: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def id_of(chunk: bytes) -> str | None:
    """The id of the generation that this chunk (JSON) belongs to, or None."""
    try:
        name = _decode_chunk(chunk).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return name if isinstance(name, str) and _ID.fullmatch(name) else None


def id_in(headers: Mapping[str, str]) -> str | None:
    """The id of the generation in the headers of an answer, or None. The headers come before the
    first chunk."""
    name = headers.get(_HEADER, "").strip()
    return name if _ID.fullmatch(name) else None


def path(generation_id: str) -> str:
    """The path of this generation's record, after the base URL."""
    return f"/generation?id={quote(generation_id, safe='')}"


def cost(record: bytes) -> int | None:
    """The cost of the generation in this record (JSON), in nano-dollars. None if the record has no
    valid cost.

    ``total_cost`` is the amount that OpenRouter charged. With the operator's own key at a provider
    (``is_byok``), the provider charges ``upstream_inference_cost`` in addition. OpenRouter also
    fills this field for other generations, but there ``total_cost`` includes it.
    """
    try:
        answer = upstream_json.decode(record)
    except ValueError:
        return None
    fields = fields_of(fields_of(answer).get("data"))
    parts = [fields.get("total_cost")]
    if fields.get("is_byok") is True:
        parts.append(fields.get("upstream_inference_cost"))
    try:
        amounts = [money.amount(part, most=money.MAX_CAP_USD) for part in parts]
    except ValueError:
        return None
    return money.nanos_ceil(sum(amounts, Decimal(0)))
