"""Decodes the JSON of an upstream, with limits on its size. No I/O."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec

from ...errors import WattfareError
from ...json_limits import check_structure
from ...types import exact
from ..errors import upstream_failed

#: How many values an answer or a list of models may have. Log probabilities have many.
MAX_ELEMENTS = 1_000_000
#: The maximum number of values that are decoded at once. No other thread can run during that time.
MAX_DECODED = 200_000


def check_size(data: bytes, most: int = MAX_ELEMENTS) -> int:
    """Refuse JSON that has too many values, or is nested too deeply. Returns the number of values;
    0 for small JSON.

    Raises:
        WattfareError: ``upstream``.
    """
    try:
        return check_structure(data, most)
    except WattfareError:
        raise too_large() from None


def too_large() -> WattfareError:
    """The error for JSON that is too large to decode."""
    return upstream_failed("The upstream's answer has too many values, or is nested too deeply.")


def decode(data: bytes) -> Any:
    """Decode JSON, with fractions as Decimal. Some values that Python writes are not valid JSON.
    They are replaced: ``NaN`` and the infinities by None, half a surrogate pair by U+FFFD.

    Raises:
        ValueError: it is not JSON.
        WattfareError: ``upstream``; it has too many values, or is nested too deeply.
    """
    check_size(data, MAX_DECODED)
    try:
        return decode_strictly(data)
    except ValueError:
        return decode_loosely(data)


def decode_strictly(data: bytes) -> Any:
    """Decode JSON as :func:`decode` does, without a check of its size.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("not strictly JSON") from None


def decode_loosely(data: bytes) -> Any:
    """Decode JSON with values that JSON does not allow, without a check of its size.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return _whole_text(json.loads(data, parse_float=exact, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


_DECODER = msgspec.json.Decoder(float_hook=exact)


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_text(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {_whole_text(name): _whole_text(item) for name, item in fields.items()}
    return value
