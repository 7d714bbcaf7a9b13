"""Limits on the structure of a JSON body."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattfare_mw import WattfareError, json_limits
from wattfare_mw.json_limits import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_ELEMENTS,
    MAX_EXTREME_NUMBERS,
    check_structure,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def size_of(value: Any) -> int:
    """Counts the containers, and the commas between their items."""
    if isinstance(value, (dict, list)):
        items = list(value.values()) if isinstance(value, dict) else value
        return 1 + max(len(items) - 1, 0) + sum(map(size_of, items))
    return 0


texts = st.text(st.sampled_from('a,[]{}"\\\n:é😀'), max_size=12)
values = st.recursive(
    texts | st.integers(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=30,
)


@given(values, st.booleans(), st.integers(1, 9), st.integers(0, 6), st.integers(0, 30))
def test_depth_and_elements_match_the_parsed_value(
    value: Any, ascii_only: bool, piece: int, depth: int, elements: int
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "_SLICE", piece)
        patch.setattr(json_limits, "MAX_DEPTH", depth)
        if depth_of(value) <= depth and size_of(value) <= elements:
            check_structure(body, elements)
        else:
            with pytest.raises(WattfareError) as caught:
                check_structure(body, elements)
            assert (caught.value.code, caught.value.status) == ("invalid_request", 400)


@given(st.text(st.sampled_from('[]{},"\\: 1'), max_size=40).map(str.encode), st.integers(1, 5))
def test_any_bytes_pass_or_are_refused(body: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "_SLICE", piece)
        with suppress(WattfareError):
            check_structure(body)


def test_limits_are_exact() -> None:
    check_structure(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    check_structure(b"[" + b"1," * (MAX_ELEMENTS - 1) + b"1]")
    check_structure(json.dumps("[" * 10**6 + "," * 10**6).encode())
    with pytest.raises(WattfareError, match="64 levels"):
        check_structure(b"[" * (MAX_DEPTH + 1))
    with pytest.raises(WattfareError, match="100,000 values"):
        check_structure(b"[" + b"1," * MAX_ELEMENTS + b"1]")


@pytest.mark.parametrize("piece", [7, 2**16])
def test_numbers_have_limited_digits(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """This applies to large bodies. Strings may have any number of digits."""
    room = b" " * 2**16

    def body(value: bytes) -> bytes:
        return b"[%s, %s]" % (value, room)

    monkeypatch.setattr(json_limits, "_SLICE", piece)
    check_structure(body(b"-" + b"1234567890" * (MAX_DIGITS // 10)))
    check_structure(body(b'"%s"' % (b"1" * 10_000)))
    check_structure(body(b'"\\"%s"' % (b"1" * 10_000)))
    check_structure(body(b",".join([b"1" * MAX_DIGITS, b'"a"', b"2" * MAX_DIGITS])))
    for number in (b"1" * (MAX_DIGITS + 1), b"0." + b"90" * MAX_DIGITS, b"1e" + b"9" * 1000):
        with pytest.raises(WattfareError, match="digits"):
            check_structure(body(number))
    if piece > 7:
        check_structure(b"1" * 10_000)


@pytest.mark.parametrize("number", [b"1e307", b"1E-300", b"1e+100", b"0." + b"1" * 100])
def test_large_bodies_have_few_extreme_numbers(number: bytes) -> None:
    room = b" " * 2**16

    def body(times: int) -> bytes:
        return b"[" + b",".join([number] * times) + b"]"

    check_structure(room + body(MAX_EXTREME_NUMBERS))
    with pytest.raises(WattfareError, match="extremely large, small or long numbers"):
        check_structure(room + body(MAX_EXTREME_NUMBERS + 1))
    # A string may contain any number of them, and so may a small body.
    check_structure(room + json.dumps(body(MAX_EXTREME_NUMBERS + 1).decode()).encode())
    short = number if len(number) < 10 else b"1e100"
    check_structure(b"[" + b",".join([short] * (MAX_EXTREME_NUMBERS + 1)) + b"]")
