"""Private: limits on the structure of a JSON body, checked before any of it is decoded.

A small body can still be expensive to decode. It may have a thousand nested arrays, or millions of
tiny objects. The time for a long integer grows with the square of its length. A number near the
limits of a double takes 300 times as long as others. One linear pass finds all of these. It works
on slices, so that other threads can run in between. Its memory does not grow with the body.
"""

from __future__ import annotations

from .errors import invalid_request

#: The maximum depth of nested arrays and objects.
MAX_DEPTH = 64
#: The maximum number of values in a body.
MAX_ELEMENTS = 100_000
#: The maximum length of a run of digits in a number, for a body above 64 kB. No double needs more
#: digits.
MAX_DIGITS = 400
#: The maximum count of numbers with a three-digit exponent or 100 digits, for a body above 64 kB.
MAX_EXTREME_NUMBERS = 1_000

_SLICE = 2**16
_OPENING = frozenset(b"[{")
_NOT_OPENING = bytes(byte for byte in range(256) if byte not in _OPENING)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_EXTREME = (b"e000", b"e-000", b"e+000", b"0" * 100)


def check_structure(body: bytes, max_elements: int = MAX_ELEMENTS) -> int:
    """Refuse a body that is nested too deeply, has too many values, or has too long numbers. The
    decoder checks later whether the body is valid JSON.

    Args:
        max_elements: the maximum number of values.

    Returns:
        How many values it has; 0 if it is too small to be counted.

    Raises:
        WattfareError: ``invalid_request``.
    """
    large = len(body) > _SLICE
    if not large and len(body) <= max_elements:
        # `count` would take three times as long.
        openings = len(body.translate(None, _NOT_OPENING))
        if openings <= MAX_DEPTH:
            return 0  # even if no bracket and no comma is in a string
    depth = elements = extreme = start = 0
    last = b""
    too_long = b"0" * (MAX_DIGITS + 1)
    in_string = False
    while start < len(body):
        piece = body[start : start + _SLICE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = body[start : start + _SLICE + 1]  # do not split an escape
        start += len(piece)
        if in_string and piece.find(b'"') < 0:
            continue  # most of a large body is usually one long string
        # Without escapes, each quote starts or ends a string.
        if piece.find(b"\\") >= 0:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0
        if large:
            numbers = last + outside.translate(_DIGITS)
            if too_long in numbers:
                raise invalid_request(f"A number in the body has more than {MAX_DIGITS} digits.")
            extreme += _count_extreme(numbers) - _count_extreme(last)
            if extreme > MAX_EXTREME_NUMBERS:
                raise invalid_request(
                    f"The body has more than {MAX_EXTREME_NUMBERS:,} extremely large, small or"
                    " long numbers."
                )
            last = numbers[-MAX_DIGITS:]
        brackets = outside.translate(None, _NOT_BRACKETS)
        elements += outside.count(b",")
        for bracket in brackets:
            if bracket in _OPENING:
                depth += 1
                elements += 1
                if depth > MAX_DEPTH:
                    raise invalid_request(f"The body is nested more than {MAX_DEPTH} levels deep.")
            else:
                depth -= 1
                if depth < 0:
                    raise invalid_request("The body is not valid JSON.")
        if elements > max_elements:
            raise invalid_request(f"The body has more than {max_elements:,} values.")
    return elements


def _count_extreme(numbers: bytes) -> int:
    return sum(map(numbers.count, _EXTREME))
