"""Converts a list of models from any provider's shape into OpenAI's shape: ``{"data": [{"id":
…}]}``. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

#: An empty list, for an upstream without one.
NO_MODELS = b'{"object":"list","data":[]}'
#: Google lists its models with this prefix, and accepts their names without it.
_PREFIX = "models/"
#: The tag that Ollama adds to a name without a tag.
_DEFAULT_TAG = ":latest"

_Entry = dict[str, msgspec.Raw] | str | int | float | bool | list[msgspec.Raw] | None


class _Data(msgspec.Struct):
    data: list[_Entry]


class _Models(msgspec.Struct):
    models: list[_Entry]


def normalized(body: bytes) -> bytes:
    """The list as ``{"data": [{"id": …}]}``; the same bytes if it has this shape already.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is not a list of models, or
            it has no model.
    """
    entries = _entries(body)
    if isinstance(entries, bytes):
        return entries
    models: list[dict[str, Any]] = []
    for entry in entries:
        name = _name(entry)
        if name:
            fields = entry if isinstance(entry, dict) else {}
            models.append({**fields, "id": bare(name)})
    if not models:
        raise msgspec.ValidationError("it has no model")
    return msgspec.json.encode({"object": "list", "data": models})


def bare(model: str) -> str:
    """A model's name without Google's prefix."""
    return model.removeprefix(_PREFIX)


def names_of(model: str) -> tuple[str, ...]:
    """The names that a list may have for a model, from the name in a call."""
    name = bare(model)
    return (model, name) if ":" in name else (model, name, name + _DEFAULT_TAG)


def _entries(body: bytes) -> list[_Entry] | bytes:
    try:
        found = msgspec.json.decode(body, type=_Data).data
    except msgspec.ValidationError:
        pass
    else:
        usual = b'"models/' not in body and b'"models\\/' not in body
        named = any(isinstance(entry, dict) for entry in found) and all(map(_has_id, found))
        return body if usual and named else found
    try:
        return msgspec.json.decode(body, type=_Models).models
    except msgspec.ValidationError:
        return msgspec.json.decode(body, type=list[_Entry])


def _has_id(entry: _Entry) -> bool:
    if isinstance(entry, dict):
        return bytes(entry.get("id", b""))[:1] == b'"'
    return not isinstance(entry, str)


def _name(entry: _Entry) -> str | None:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict):
        return None
    for field in ("id", "model", "name"):
        raw = entry.get(field)
        if raw is not None:
            try:
                return msgspec.json.decode(raw, type=str)
            except msgspec.MsgspecError:
                continue
    return None
