"""Computes the maximum tokens of a prompt, for any tokenizer.

A text has at most as many tokens as bytes, because each token has at least one byte. So the bound
is the size of the text that the upstream's chat template creates from the request:

- The messages, as JSON. The keys and quotes of JSON are longer than the text that a template writes
  around each value. Some tokenizers first normalize characters (NFC, NFKC). This makes a few
  characters longer, for example U+FDFA eleven times as long, so each character counts in its
  longest form. Characters are normalized one by one, because normalizing a whole text can take time
  that grows with the square of its combining marks.
- The parts of a message that are not text, such as the arguments of earlier tool calls, a second
  time. A template may write this JSON again, with a space after each comma and colon.
- Tools, also those of a message, and the answer's format, in the longest form that a template may
  write: see :func:`.json_tokens`.
- :data:`PER_ITEM` tokens for each document.
- The additions of a template: :data:`PER_MESSAGE` around each message, :data:`PER_CALL` before all
  of them (a default system message, the date, the list of channels), and :data:`WITH_TOOLS` for the
  rules on calling tools.

If a field makes the upstream add text, such as retrieved pages, the prompt has no bound: see
:mod:`.allowed_fields`.
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

#: The tokens that a chat template puts around one message: a name, a channel, a start and an end.
PER_MESSAGE = 16
#: The tokens that a chat template puts before all messages. The most known are about 120, for
#: gpt-oss.
PER_CALL = 256
#: The tokens that explain to a model how to call tools. Anthropic documents up to 700.
WITH_TOOLS = 1024

#: Tokens that a template puts around each document, or around another item of a list.
PER_ITEM = 32

#: The fields of a message that has only text or parts.
TEXT_ONLY = frozenset({"role", "content"})
#: The fields besides the messages that become text of the prompt.
_WRITTEN = frozenset(
    {
        *("tools", "functions", "response_format", "tool_choice", "function_call", "reasoning"),
        *("chat_template_kwargs", "chat_template_args", "documents", "structured_outputs"),
        "structural_tag",
        *("guided_json", "guided_choice", "guided_regex", "guided_grammar", "json_schema"),
        *("format", "regex", "ebnf", "grammar", "output_config", "thinking", "options"),
        *("output_format", "translation_options", "nvext", "extra_body"),
    }
)
#: For models without formats of answers, gateways turn a format into a tool.
_TOOLS = ("tools", "functions", "response_format")
_TEMPLATE_ARGUMENTS = ("chat_template_kwargs", "chat_template_args")
#: Text is counted in pieces of this many bytes, so that other threads can run in between, and one
#: wide character does not use memory for all others.
_PIECE = 2**16


def bound(body: dict[str, Any], encoded: bytes | None = None) -> int:
    """The maximum tokens of this request's prompt, for any tokenizer. ``encoded``: the messages as
    JSON, if they are already encoded."""
    messages: list[dict[str, Any]] = body["messages"]
    return (
        longest_form(msgspec.json.encode(messages) if encoded is None else encoded)
        + sum(0 if message.keys() <= TEXT_ONLY else _arguments(message) for message in messages)
        + (0 if _WRITTEN.isdisjoint(body) else _tokens_outside_messages(body))
        + PER_MESSAGE * len(messages)
        + PER_CALL
    )


def _tokens_outside_messages(body: dict[str, Any]) -> int:
    rest = written(body)
    rules = WITH_TOOLS if any(body.get(name) for name in _TOOLS) else 0
    return (json_tokens(rest) if rest else 0) + rules + PER_ITEM * _items(body)


def _items(body: dict[str, Any]) -> int:
    """How many documents there are, and how many other items of lists for the template."""
    lists = [body.get("documents")]
    for name in _TEMPLATE_ARGUMENTS:
        arguments = body.get(name)
        if isinstance(arguments, dict):
            lists += cast("dict[str, Any]", arguments).values()
    return sum(len(cast("list[Any]", each)) for each in lists if isinstance(each, (list, dict)))


def written(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of this request, besides the messages, that become text of the prompt."""
    if _WRITTEN.isdisjoint(body):
        return {}
    return {name: body[name] for name in _WRITTEN if body.get(name) is not None}


def counts(text: int, attached: Attachments | None, family: Family) -> TokenCounts:
    """The maximum tokens of a prompt with attachments.

    Args:
        text: the maximum tokens of the rest of the prompt.
        family: the family of the model.
    """
    if attached is None:
        return TokenCounts(prompt=text)
    pages = [length for document in attached.pages for length in document.text]
    image = family.images_tokens(attached.images) + sum(map(family.page_tokens, pages))
    audio = sum(map(family.audio_tokens, attached.audio))
    return TokenCounts(
        prompt=text + image + audio + attached.text + AROUND * len(attached.pages),
        image=image,
        audio=audio,
        images=len(attached.images) + len(pages),
    )


def longest_form(data: bytes) -> int:
    """The number of bytes of this text, with each character in its longest form."""
    if data.isascii():
        return len(data)
    decoder = getincrementaldecoder("utf-8")("surrogatepass")
    counted: Counter[str] = Counter()
    for start in range(0, len(data), _PIECE):
        counted.update(decoder.decode(data[start : start + _PIECE]))
    return sum(_bytes(char) * times for char, times in counted.items())


# The cache is large enough for a text in any language. It is bounded, because a text could have all
# characters.
@lru_cache(maxsize=2**14)
def _bytes(char: str) -> int:
    if "\uac00" <= char <= "\ud7a3":
        return 3  # a Hangul syllable: every composing form composes these
    # Count the decomposed form, because marks may move to another letter. A composed form is never
    # longer.
    forms = (char, unicodedata.normalize("NFD", char), unicodedata.normalize("NFKD", char))
    return max(len(form.encode("utf-8", "surrogatepass")) for form in forms)


def _arguments(message: dict[str, Any]) -> int:
    """The parts of a message that a template may write a second time: everything except text."""
    found = 0
    for name, value in message.items():
        if value and name != "content" and isinstance(value, (dict, list)):
            found += json_tokens(value) + WITH_TOOLS if name == "tools" else json_length(value)
    return found
