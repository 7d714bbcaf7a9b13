"""Counts the tokens of a prompt with the tokenizers of OpenAI's models. It needs the extra
``wattfare-mw[tokenizer]``.

The extra's package includes the vocabularies, so nothing is downloaded. A count is a bound only for
models with exactly this tokenizer, because another tokenizer can produce many times more tokens
from the same text. Other models use the bound of :mod:`.prompt_bound`.

Each text is counted separately, and the rest of the request is counted as JSON. OpenAI's models
read tools as TypeScript, which has fewer tokens than JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from ...types import fields_of
from . import prompt_bound
from .families import bare

#: The tokens that OpenAI's models add around a call, a message and tools, with some room: gpt-oss
#: adds about 110, 4 and 40 (github.com/openai/harmony, docs/format.md), and the others add less.
PER_CALL = 150
PER_MESSAGE = 8
WITH_TOOLS = 80

#: Text is counted in pieces of this many characters. The pieces together have at least as many
#: tokens as the whole text, except for a few where two pieces meet.
_PIECE = 2**16
#: The extra tokens where two pieces or two parts of a message meet.
_SEAM = 1
_NAMES = (
    # By the name of the model, as in OpenAI's own package: openai/tiktoken, tiktoken/model.py.
    (re.compile(r"(?:chat)?gpt-4o|gpt-4\.[15]|gpt-5|gpt-oss-|(?:o1|o3|o4)(?:-|$)"), "o200k_base"),
    (re.compile(r"gpt-4(?!\.)|gpt-3\.?5"), "cl100k_base"),
)


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """True if the extra is installed. The first call imports it, so do not call it on an event
    loop."""
    try:
        import bpe_openai  # noqa: F401  # pyright: ignore[reportMissingTypeStubs,reportUnusedImport]
    except ImportError:
        return False
    return True


def encoding_of(model: str) -> str | None:
    """The name of this model's tokenizer. None if the model has another one, or if the extra is not
    installed."""
    if not is_installed():
        return None
    name = bare(model)
    return next((encoding for pattern, encoding in _NAMES if pattern.match(name)), None)


def count(encoding: str, text: str) -> int:
    """The tokens of this text. The first call reads the vocabulary, so do not call it on an event
    loop."""
    encode = _encoder(encoding)
    if not text.isascii():
        # A tokenizer reads UTF-8, which has no lone surrogates. Each becomes a replacement
        # character of three bytes.
        text = text.encode("utf-8", "replace").decode()
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return sum(len(encode(piece)) + _SEAM for piece in pieces) - (_SEAM if pieces else 0)


def tokens(encoding: str, body: dict[str, Any], text: list[dict[str, Any]]) -> int:
    """The maximum tokens of this request's prompt, for this tokenizer.

    Args:
        text: the messages without the data of their attachments.
    """
    found = PER_CALL + PER_MESSAGE * len(text)
    for message in text:
        found += count(encoding, message["role"]) + _content(encoding, message.get("content"))
        found += _rest(encoding, message, "role", "content")
        if tools := message.get("tools"):
            found += 2 * _json(tools).count("\\n") + WITH_TOOLS
    written = prompt_bound.written(body)
    return found + (_lines(encoding, _json(written)) + WITH_TOOLS if written else 0)


def _content(encoding: str, content: object) -> int:
    if isinstance(content, str):
        return count(encoding, content)
    if not isinstance(content, list):
        return 0
    found = 0
    for part in cast("list[Any]", content):
        fields = fields_of(part)
        text = fields.get("text")
        if isinstance(text, str):
            found += count(encoding, text) + _rest(encoding, fields, "type", "text")
        else:
            found += count(encoding, _json(fields))
        found += _SEAM
    return found


def _rest(encoding: str, fields: dict[str, Any], *counted: str) -> int:
    """The tokens of the other fields."""
    rest = {
        name: value for name, value in fields.items() if name not in counted and value is not None
    }
    return count(encoding, _json(rest)) if rest else 0


def _lines(encoding: str, text: str) -> int:
    """The tokens for the comment marks of a description, one before each line."""
    return count(encoding, text) + 2 * text.count("\\n")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=4)
def _encoder(encoding: str) -> Callable[[str], list[int]]:
    import bpe_openai  # pyright: ignore[reportMissingTypeStubs]

    return bpe_openai.get_encoding(encoding).encode_ordinary
