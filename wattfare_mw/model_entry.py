"""Private: finds one model in a list of models."""

from __future__ import annotations

import msgspec


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_list = msgspec.json.Decoder(_List).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode


def find_entry(listing: bytes, model: str) -> bytes | None:
    """The entry of this model in ``{"data": [{"id": …}]}``, or None. Takes time in proportion to
    the length of the list.

    Raises:
        msgspec.MsgspecError: it is not a list of models.
    """
    # Decode only entries that may match. A JSON string with escapes may also be this name.
    plain = model.encode("utf-8", "surrogatepass")
    for raw in _decode_list(listing).data:
        entry = bytes(raw)
        if plain not in entry and b"\\" not in entry:
            continue
        try:
            if _decode_entry(entry).id == model:
                return entry
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return None
