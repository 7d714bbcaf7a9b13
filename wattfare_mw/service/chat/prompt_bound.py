"""How many tokens a prompt can be at most, whoever counts them.

No tokenizer makes more tokens than the text it is given has bytes: those of today are built on
bytes, and fall back on them for what they have not learnt. What has to be bounded is that text,
which is the request as the upstream's chat template writes it down:

- The messages, in their JSON: the keys and quotes that stand around each value there are longer
  than what they become. Some tokenizers normalize characters first (NFC, NFKC), which makes a
  few of them longer, U+FDFA elevenfold; so each counts in the longest of its forms. They are
  counted one by one: normalizing a whole text takes time in the square of its combining marks.
- The arguments of earlier tool calls, and what else is no text in a message, once more: it is
  JSON, and a template may write it anew, with a space behind each comma and colon.
- Tools and the answer's format, as a template may write them: see :func:`.json_tokens`.
- What a template adds by itself: :data:`PER_MESSAGE` around each message, :data:`PER_CALL` for
  what stands before them all (a default system message, the date, the list of channels), and
  :data:`WITH_TOOLS` for the rules on how tools are called.

What the upstream adds beyond that (retrieved pages, say) is not the user's: such fields are
refused, see :mod:`.allowed_fields`.
"""

from __future__ import annotations

import unicodedata
from codecs import getincrementaldecoder
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from .families import AROUND, Family
from .json_length import json_length, json_tokens
from .usage import TokenCounts

if TYPE_CHECKING:
    from .attachments import Attachments

#: Tokens that a chat template puts around one message: a name, a channel, begin and end.
PER_MESSAGE = 16
#: Tokens that it puts before all of them; the longest known is gpt-oss's, of about 120.
PER_CALL = 256
#: Tokens that explain to a model how to call tools; Anthropic's list names 700 at most.
WITH_TOOLS = 1024

#: The fields of a message that has nothing but a text, or parts.
TEXT_ONLY = frozenset({"role", "content"})
#: What the text of a prompt is written from, besides its messages.
_WRITTEN = frozenset(
    {
        *("tools", "functions", "response_format", "tool_choice", "function_call", "reasoning"),
        *("chat_template_kwargs", "documents", "structured_outputs", "structural_tag"),
        *("guided_json", "guided_choice", "guided_regex", "guided_grammar", "json_schema"),
        *("format", "regex", "ebnf", "grammar", "output_config", "thinking", "options"),
    }
)
_TOOLS = ("tools", "functions")
#: Text is counted in pieces of so many bytes. Other threads can run meanwhile, and one wide
#: character does not widen all the others.
_PIECE = 2**16


def bound(body: dict[str, Any], encoded: bytes | None = None) -> int:
    """More tokens than any tokenizer makes of this request's prompt; ``encoded``: its messages as
    JSON, where they have been written down already."""
    messages = cast("list[dict[str, Any]]", body["messages"])
    return (
        longest_form(msgspec.json.encode(messages) if encoded is None else encoded)
        + sum(0 if message.keys() <= TEXT_ONLY else _arguments(message) for message in messages)
        + (0 if _WRITTEN.isdisjoint(body) else _beside(body))
        + PER_MESSAGE * len(messages)
        + PER_CALL
    )


def _beside(body: dict[str, Any]) -> int:
    rest = written(body)
    rules = WITH_TOOLS if any(body.get(name) for name in _TOOLS) else 0
    return (json_tokens(rest) if rest else 0) + rules


def written(body: dict[str, Any]) -> dict[str, Any]:
    """What the text of this request's prompt is written from, besides its messages."""
    if _WRITTEN.isdisjoint(body):
        return {}
    return {name: body[name] for name in _WRITTEN if body.get(name) is not None}


def counts(text: int, attached: Attachments | None, family: Family) -> TokenCounts:
    """The tokens of a prompt with attachments, at most.

    Args:
        text: of everything else in it.
        family: of the model.
    """
    if attached is None:
        return TokenCounts(prompt=text)
    pages = [length for document in attached.pages for length in document.text]
    image = sum(map(family.image_tokens, attached.images)) + sum(map(family.page_tokens, pages))
    audio = sum(map(family.audio_tokens, attached.audio))
    return TokenCounts(
        prompt=text + image + audio + attached.text + AROUND * len(attached.pages),
        image=image,
        audio=audio,
        images=len(attached.images) + len(pages),
    )


def longest_form(data: bytes) -> int:
    """The bytes of this text, each character in the longest of its forms."""
    if data.isascii():
        return len(data)
    decoder = getincrementaldecoder("utf-8")("surrogatepass")
    counted: Counter[str] = Counter()
    for start in range(0, len(data), _PIECE):
        counted.update(decoder.decode(data[start : start + _PIECE]))
    return sum(_bytes(char) * times for char, times in counted.items())


# As many as a text has that is written in any language, and no more: a text can have them all.
@lru_cache(maxsize=2**14)
def _bytes(char: str) -> int:
    if "\uac00" <= char <= "\ud7a3":
        return 3  # a Hangul syllable: what composes any text at all composes these
    # Marks may move to another letter, so that it is the decomposed form that counts; what is
    # composed from it is never longer.
    forms = (char, unicodedata.normalize("NFD", char), unicodedata.normalize("NFKD", char))
    return max(len(form.encode("utf-8", "surrogatepass")) for form in forms)


def _arguments(message: dict[str, Any]) -> int:
    """What a template may write anew: all but the text."""
    return sum(
        json_length(value)
        for name, value in message.items()
        if value and name != "content" and isinstance(value, (dict, list))
    )
