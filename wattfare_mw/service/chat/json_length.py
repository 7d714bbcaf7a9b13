"""How long a value is as JSON text, counted without writing the text.

The text can be much larger than the value: each level of indentation multiplies it. So only its
length is computed, and the memory stays what the value itself takes.
"""

from __future__ import annotations

import json
from typing import Any, cast

#: Characters are counted in pieces of this size, so that other threads can run meanwhile.
_PIECE = 2**16
# These are escaped as two characters, and other control characters as six.
_SHORT_ESCAPES = '"\\\n\r\t\b\f'
_LONG_ESCAPES = [chr(code) for code in (*range(0x20), 0x7F) if chr(code) not in _SHORT_ESCAPES]


def json_length(value: Any, indent: int | None = None) -> int:
    """The length of ``json.dumps(value, indent=indent)``, in characters. All of them are ASCII.

    Args:
        value: decoded JSON, nested no deeper than :data:`~wattfare_mw.json_limits.MAX_DEPTH`.
    """
    return _length(value, indent, 0)


def _length(value: Any, indent: int | None, depth: int) -> int:
    if isinstance(value, str):
        return _string_length(value)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if not fields:
            return 2
        inner = sum(
            _string_length(name) + 2 + _length(item, indent, depth + 1)
            for name, item in fields.items()
        )
        return inner + _around(len(fields), indent, depth)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if not items:
            return 2
        inner = sum(_length(item, indent, depth + 1) for item in items)
        return inner + _around(len(items), indent, depth)
    return len(json.dumps(value))  # a number, true, false or null


def _around(count: int, indent: int | None, depth: int) -> int:
    """The brackets around so many items, and what separates them."""
    if indent is None:
        return 2 + 2 * (count - 1)  # ", "
    line = 1 + indent * (depth + 1)  # a line end, and the indentation
    return 2 + count * line + (count - 1) + (1 + indent * depth)


def _string_length(text: str) -> int:
    if len(text) <= _PIECE:
        return 2 + _escaped_length(text)
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return 2 + sum(map(_escaped_length, pieces))


def _escaped_length(text: str) -> int:
    length = len(text)
    if not text.isascii():
        # Each unit of UTF-16 that is not ASCII is written as \uXXXX.
        ascii_characters = len(text.encode("ascii", "ignore"))
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
        length = ascii_characters + 6 * (units - ascii_characters)
    length += text.count('"') + text.count("\\")
    if not text.isprintable():
        length += sum(map(text.count, "\n\r\t\b\f")) + 5 * sum(map(text.count, _LONG_ESCAPES))
    return length
