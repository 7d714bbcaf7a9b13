"""Removes the upstream's key from the upstream's answers.

An upstream may repeat a request's headers, with the key, in an error, in an unused field or in an
answer. Browsers receive these texts, so the key is removed from all of them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from ...transport import Secret, SecretBytes

#: The replacement for the key.
MASK = "…"
#: A run of this many letters and digits that also occurs in the key counts as a part of the key.
RUN = 8
#: The longest text that is searched, in characters. A longer text is cut first.
MAX_TEXT = 20_000
#: A shorter key may be an ordinary word: local servers accept "ollama", "none" or "EMPTY". In an
#: answer, such a key is removed only after "Bearer". In an error, it is always removed.
MIN_KEY_IN_ANSWER = 16
#: If the marks of a key (see :func:`_mark`) occur more often than this in one answer, only the
#: marks are removed, and not the whole key.
MAX_MARKS = 100

# One character, as texts, JSON, URLs and HTML write it. An escaped percent sign may be escaped
# again.
_TOKEN = re.compile(
    r"(?<!\\)\\++(?:u00([0-9a-fA-F]{2})|x([0-9a-fA-F]{2}))|%(?:25)*([0-9a-fA-F]{2})"
    r"|&#[xX]0*([0-9a-fA-F]{1,2});|&#0*([0-9]{1,3});|([0-9A-Za-z])"
)


class Redactor:
    """Removes one key from texts and from answers.

    Args:
        key: the key. If it is None or empty, nothing is removed.
    """

    def __init__(self, key: str | None) -> None:
        self._key = Secret(key or "")
        self._marks: tuple[SecretBytes, ...] = ()
        self._always: tuple[SecretBytes, ...] = ()
        if key:
            self._marks = tuple(_mark(form) for form in (key, *_coded(key)))
            if not _may_be_a_word(key):
                self._always = tuple(mark for mark in self._marks if len(mark) >= RUN)
            #: How far around a mark to search, in bytes. No form of the key is longer, except one
            #: with many backslashes.
            self._reach = 8 * max(map(len, (key, *_coded(key)))) + 64

    # The patterns of a key take 15 ms and 180 kB, and most keys never occur in an answer or an
    # error. So the patterns are created when they are first needed.

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("".join(map(_written, self._key)), re.IGNORECASE)

    @cached_property
    def _runs(self) -> frozenset[str]:
        return frozenset(
            Secret(form[start : start + RUN])
            for form in _forms(self._key)
            for start in range(len(form) - RUN + 1)
        )

    @cached_property
    def _in_answer(self) -> re.Pattern[bytes]:
        key = self._key
        plain = "".join(map(_written, key))
        if _may_be_a_word(key):
            plain = rf"Bearer(?:[ +]|%20|\\u0020)+{plain}"
        patterns = [plain, *("".join(map(_written, form)) for form in _coded(key) if form != key)]
        return re.compile("|".join(patterns).encode())

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, words: str) -> str:
        """This text without the key. The key may be plain, escaped, in base64 or in hex, and whole
        or in parts."""
        if not self._key:
            return words
        words = self._whole.sub(MASK, words[:MAX_TEXT])
        if not self._runs:
            return words
        cut: list[tuple[int, int]] = []
        for start, end in self._found(words):
            if cut and start <= cut[-1][1]:
                cut[-1] = (cut[-1][0], max(end, cut[-1][1]))
            else:
                cut.append((start, end))
        for start, end in reversed(cut):
            words = words[:start] + MASK + words[end:]
        return words

    def answer(self, data: bytes) -> bytes:
        """This JSON, or these events of JSON, without the key."""
        if not self._marks:
            return data
        # Called for each event of a stream. The pattern would take a hundred times as long.
        find = data.find
        key, first, second, third = self._marks
        if find(key) < 0 and find(first) < 0 and find(second) < 0 and find(third) < 0:
            return data
        return self._masked(data)

    def _masked(self, data: bytes) -> bytes:
        # The pattern takes a microsecond for each byte, and no other thread can run meanwhile. So
        # only the surroundings of each mark are searched.
        mask = MASK.encode()
        most = MAX_MARKS + 1 if self._always else None
        places = sorted(place for mark in self._marks for place in islice(_all(data, mark), most))
        if not self._always or len(places) <= MAX_MARKS:
            pieces: list[bytes] = []
            done = 0
            for start, end in _joined(places, self._reach):
                for match in self._in_answer.finditer(data, max(start, done), end):
                    pieces += (data[done : match.start()], mask)
                    done = match.end()
            data = b"".join((*pieces, data[done:]))
        for mark in self._always:
            data = data.replace(mark, mask)
        return data

    def _found(self, words: str) -> Iterator[tuple[int, int]]:
        # Case, escapes and characters between two letters are ignored.
        places: list[tuple[int, int]] = []
        letters: list[str] = []
        for match in _TOKEN.finditer(words):
            *hexadecimal, decimal, letter = match.groups()
            code = next((code for code in hexadecimal if code), None)
            if code or decimal:
                letter = chr(int(code, 16) if code else int(decimal))
            if letter.isascii() and letter.isalnum():
                letters.append(letter.lower())
                places.append(match.span())
        text = "".join(letters)
        for start in range(len(text) - RUN + 1):
            if text[start : start + RUN] in self._runs:
                yield places[start][0], places[start + RUN - 1][1]


def _all(data: bytes, mark: bytes) -> Iterator[int]:
    """Each place of the mark."""
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + len(mark))


def _joined(places: list[int], reach: int) -> Iterator[tuple[int, int]]:
    """The surroundings of these places, in order. Overlapping surroundings are merged."""
    start = end = -1
    for place in places:
        if place - reach > end:
            if end >= 0:
                yield start, end
            start = max(0, place - reach)
        end = place + reach
    if end >= 0:
        yield start, end


def _may_be_a_word(key: str) -> bool:
    return len(key) < MIN_KEY_IN_ANSWER and not key.startswith("sk-")


def _coded(key: str) -> list[str]:
    """The key in base64, as in ``Authorization: Basic …``, at the three possible offsets. These
    forms are too long to be words. For a short key, the list has the key itself three times."""
    return [_middle(key, before) for before in range(3)] if len(key) >= RUN else [key] * 3


def _forms(key: str) -> Iterator[str]:
    """The letters and digits of the key, of its hex form, and of the middle of its base64 form at
    any offset in a longer text."""
    data = key.encode("utf-8", "surrogatepass")
    yield _letters_and_digits(key)
    yield data.hex()
    for before in range(3):
        yield _letters_and_digits(_middle(key, before))


def _middle(key: str, before: int) -> str:
    """The base64 form of the key if ``before`` other bytes precede it, without the characters that
    depend on the bytes around the key."""
    data = b"\0" * before + key.encode("utf-8", "surrogatepass")
    coded = base64.b64encode(data).decode().rstrip("=")
    return coded[-(-before * 8 // 6) : -1]


def _mark(form: str) -> SecretBytes:
    """The longest run of letters and digits in this form of the key. Usually, such characters are
    not escaped, so a plain search finds the run."""
    return SecretBytes(max(re.findall("[0-9A-Za-z]+", form) or [form], key=len).encode())


def _letters_and_digits(text: str) -> str:
    return "".join(char for char in text if char.isascii() and char.isalnum()).lower()


def _written(char: str) -> str:
    """The ways in which JSON and URLs write a character, as a pattern."""
    code = f"{ord(char):02x}"
    ways = [rf"\\u00{code}", f"%{code}"]
    # Possessive, so that a long row of backslashes is not tried twice.
    if char == "\\":
        ways.append(r"(?<!\\)\\++")
    else:
        ways += [re.escape(char), rf"(?<!\\)\\++{re.escape(char)}"]
    return f"(?:{'|'.join(ways)})"
