"""Computes the length of a value as JSON text, without writing the text.

The text can be much larger than the value, because each level of indentation adds to it. Computing
only the length needs no memory for the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from ...json_limits import MAX_DEPTH

#: Characters are counted in pieces of this size, so that other threads can run in between.
_PIECE = 2**16
# These are escaped as two characters, and other control characters as six.
_SHORT_ESCAPES = '"\\\n\r\t\b\f'
_LONG_ESCAPES = [chr(code) for code in (*range(0x20), 0x7F) if chr(code) not in _SHORT_ESCAPES]
#: The maximum depth of nesting in the text, with some room.
_DEPTHS = MAX_DEPTH + 8
_INDENT = 4
#: The tokens of a line end and the spaces after it, by depth. All known tokenizers have a token for
#: 16 spaces or more. ``tests/service/test_real_prompts.py`` checks this for some of them.
_LINE_TOKENS = [2 + -(-_INDENT * depth // 16) for depth in range(_DEPTHS)]


def json_length(value: Any, indent: int | None = None) -> int:
    """The length of ``json.dumps(value, indent=indent)``, in characters. All of them are ASCII.

    Args:
        value: decoded JSON, nested no deeper than :data:`~wattfare_mw.json_limits.MAX_DEPTH`.
    """
    lines = None if indent is None else [1 + indent * depth for depth in range(_DEPTHS)]
    return _length(value, lines, False, 0)


def json_tokens(value: Any) -> int:
    """The maximum tokens of this value as JSON, for any form that a template may write: compact or
    with up to four spaces per level, in ASCII or not, and with ``<`` escaped or not.

    A token has at least one byte, so the number of bytes is a bound. Only indentation is counted
    more closely, because it can be half of the text but only a few tokens.
    """
    return _length(value, _LINE_TOKENS, True, 0)


def _length(value: Any, lines: Sequence[int] | None, html: bool, depth: int) -> int:
    """
    Args:
        lines: the tokens of a line end and its indentation, by depth; None for one line.
        html: True if the characters of HTML are escaped, as Jinja's ``tojson`` does.
    """
    if isinstance(value, str):
        return _string_length(value, html)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if not fields:
            return 2
        inner = 2 * len(fields)  # ": "
        for name, item in fields.items():
            inner += _string_length(name, html) + _length(item, lines, html, depth + 1)
        return inner + _brackets_and_separators(len(fields), lines, depth)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if not items:
            return 2
        inner = sum(_length(item, lines, html, depth + 1) for item in items)
        return inner + _brackets_and_separators(len(items), lines, depth)
    return len(json.dumps(value))  # a number, true, false or null


def _brackets_and_separators(count: int, lines: Sequence[int] | None, depth: int) -> int:
    """The brackets around this many items, and the separators."""
    if lines is None:
        return 2 + 2 * (count - 1)  # ", "
    return 2 + (count - 1) + count * lines[depth + 1] + lines[depth]


def _string_length(text: str, html: bool) -> int:
    if text.isascii() and text.isidentifier():
        return 2 + len(text)  # true of most names
    if len(text) <= _PIECE:
        return 2 + _escaped_length(text, html)
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return 2 + sum(_escaped_length(piece, html) for piece in pieces)


def _escaped_length(text: str, html: bool) -> int:
    length = len(text)
    if not text.isascii():
        # Each UTF-16 unit outside of ASCII is written as \uXXXX.
        ascii_characters = len(text.encode("ascii", "ignore"))
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
        length = ascii_characters + 6 * (units - ascii_characters)
    count = text.count
    length += count('"') + count("\\")
    if html:
        length += 5 * (count("<") + count(">") + count("&") + count("'"))
    if not text.isprintable():
        length += sum(map(count, "\n\r\t\b\f")) + 5 * sum(map(count, _LONG_ESCAPES))
    return length
