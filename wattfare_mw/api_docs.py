"""Private: describes the middleware's paths for OpenAPI documents. Each adapter converts the
description for its framework."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

#: Descriptions of the errors of a request that spends a user's budget, by status.
ERROR_DESCRIPTIONS: Mapping[int, str] = MappingProxyType(
    {
        401: "No user is signed in.",
        402: "The user has not connected a budget, or the budget does not cover the call.",
        403: "The request comes from another site, or the app does not allow the model.",
        429: "Too many requests. Wait for `Retry-After` seconds.",
        502: "Wattfare or the model's provider failed.",
    }
)
#: The JSON schema of an inference request.
CHAT_BODY: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string"},
            "messages": {"type": "array", "items": {"type": "object"}},
            "stream": {"type": "boolean"},
            "max_tokens": {"type": "integer"},
        },
        "additionalProperties": True,
    }
)


class JsonField(NamedTuple):
    """A field of a JSON object.

    Attributes:
        kind: a struct, or ``bool``, ``int``, ``float`` or ``str``.
        optional: True if it can be null.
        required: True if it is always present.
    """

    kind: type[Any]
    optional: bool
    required: bool


def json_fields(struct: type[msgspec.Struct]) -> dict[str, JsonField]:
    """The JSON fields of a struct of the protocol, by name."""
    hints = get_type_hints(struct)
    return {
        field.encode_name: JsonField(*_kind_of(hints[field.name]), field.required)
        for field in msgspec.structs.fields(struct)
    }


def _kind_of(hint: Any) -> tuple[type[Any], bool]:
    parts = get_args(hint)
    if parts:  # a union with None
        (only,) = (part for part in parts if part is not NoneType)
        return _kind_of(only)[0], True
    return float if issubclass(hint, Decimal) else hint, False
