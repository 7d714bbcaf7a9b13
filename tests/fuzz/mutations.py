"""Generates inputs from samples: replaces JSON values, then changes bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

#: Bytes that a reader may fail on.
TOKENS = (
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\0", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xff"),
    *(b"data: ", b"data:", b"data", b": x\n\n", b"event: error\n", b"[DONE]", b"data: [DONE]\n\n"),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\\\", b'\\"', b",", b":", b"null", b"true", b"[[]]"),
    *(b"NaN", b"-Infinity", b"1e999", b"1e-999", b"1e99999999999999999999", b"-1", b"0.1", b"-0"),
    *(b"9" * 30, b"9" * 5000, b"\\ud800", b"\\udfff\\ud800", b"\\u0000", b"\xed\xa0\x80"),
    *(b'"usage"', b'"error"', b'"choices"', b'"model"', b'"\\u006dodel"', b"%", b"%00", b"%ff"),
)

#: The same as JSON values.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308),
    *("", "x", "\0", "\ud800", "\ufdfa" * 5, "é" * 50, "0", "-1", "1e5", "NaN", "Infinity"),
    *("1e999999999", "1e-999999999", "1e99999999999999999999", "٣", "9" * 5000, "text", "\n\r"),
    *([], {}, [[]], [{}], {"": None}, [None], {"type": "text"}, {"error": {}}, {"error": "x"}),
    *({"error": {"code": 401, "message": "x"}}, {"error": {"code": "402"}}, {"message": {}}),
    *(float("nan"), float("inf"), [0] * 100, {"a": {"b": {"c": {"d": []}}}}),
)


def nested(depth: int) -> Any:
    """Nested arrays and objects."""
    value: Any = []
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def bytes_of(samples: list[bytes], random: Random, tokens: tuple[bytes, ...] = TOKENS) -> bytes:
    """One of the samples, with some of its bytes changed."""
    data = bytearray(random.choice(samples))
    for _ in range(random.choice((0, 1, 1, 2, 3, 5, 8))):
        place = random.randrange(len(data) + 1)
        end = min(len(data), place + random.choice((1, 1, 2, 4, 16)))
        match random.randrange(7):
            case 0:
                data[place:end] = b""
            case 1 if place < len(data):
                data[place] = random.randrange(256)
            case 2:
                other = random.choice(samples)
                start = random.randrange(len(other) + 1)
                data[place:end] = other[start : start + random.choice((1, 8, 64, 512))]
            case 3:
                data[place:place] = data[place:end] * random.choice((2, 3, 70))
            case 4 if random.random() < 0.3:
                del data[place:]
            case _:
                data[place:place] = random.choice(tokens)
    return bytes(data)


def json_of(samples: list[Any], names: tuple[str, ...], random: Random) -> bytes:
    """One of the samples, with some of its values changed, and sometimes its bytes.

    Args:
        names: the names of fields that mean something.
    """
    value = random.choice(samples)
    for _ in range(random.choice((0, 1, 1, 2, 3, 6))):
        value = _changed(value, names, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return bytes_of([data], random) if random.random() < 0.3 else data


def _changed(value: Any, names: tuple[str, ...], random: Random) -> Any:
    """A copy with one value replaced."""
    if isinstance(value, dict) and random.random() < 0.85:
        fields = dict(value)
        if fields and random.random() < 0.8:
            name = random.choice(list(fields))
            if random.random() < 0.1:
                fields[random.choice(names)] = fields.pop(name)
            else:
                fields[name] = _changed(fields[name], names, random)
        else:
            fields[random.choice(names)] = _any(random)
        return fields
    if isinstance(value, list) and value and random.random() < 0.85:
        items = list(value)
        place = random.randrange(len(items))
        match random.randrange(8):
            case 0:
                del items[place]
            case 1:
                items[place:place] = [items[place]] * random.choice((1, 2, 70))
            case _:
                items[place] = _changed(items[place], names, random)
        return items
    if isinstance(value, str) and random.random() < 0.4:
        other = random.choice(VALUES)
        return value + (other if isinstance(other, str) else "x")
    return _any(random)


def _any(random: Random) -> Any:
    if random.random() < 0.03:
        return nested(random.choice((3, 61, 62, 63, 64, 65, 500)))
    return random.choice(VALUES)
