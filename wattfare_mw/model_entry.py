"""Private: finds one model in a list of models, by its name or by another name for it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: OpenRouter's suffixes that choose how a model is served. Lists have only the model itself.
ONLINE = ":online"
SUFFIXES = (":nitro", ":floor", ":exacto", ONLINE)


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


def find_model(listing: bytes, names: Iterable[str]) -> bytes | None:
    """The entry of the first of these names that the list has, or None. Its ``id`` is the first
    name, which is the one that the client has used.

    Raises:
        msgspec.MsgspecError: it is not a list of models.
    """
    wanted: str | None = None
    for name in names:
        wanted = name if wanted is None else wanted
        entry = find_entry(listing, name)
        if entry is not None:
            return entry if name == wanted else _named(entry, wanted)
    return None


def split(model: str) -> tuple[str, list[str]]:
    """The name of the model without its suffixes, and these suffixes."""
    found: list[str] = []
    while model.endswith(SUFFIXES):
        model, colon, last = model.rpartition(":")
        found.append(colon + last)
    return model, found


def with_base(model: str) -> list[str]:
    """This name, and the name of the model without its suffixes, if it has any."""
    base, suffixes = split(model)
    return [model, base] if suffixes else [model]


def _named(entry: bytes, name: str) -> bytes:
    fields = msgspec.json.decode(entry, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "id": name})
