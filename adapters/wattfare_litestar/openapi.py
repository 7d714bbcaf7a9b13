"""Adds the plugin's paths and errors to an app's OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    PathItem,
    RequestBody,
)

from wattfare_mw.framework import (
    CHAT_BODY,
    ERROR_DESCRIPTIONS,
    ConnectionStatus,
    CreatedSession,
    json_fields,
)

if TYPE_CHECKING:
    from litestar.openapi.spec import Schema

#: A JSON schema as a dict. Litestar writes it unchanged.
JsonSchema = Mapping[str, Any]

_OBJECT: JsonSchema = {"type": "object"}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def _object(required: Sequence[str], properties: JsonSchema) -> JsonSchema:
    return {**_OBJECT, "required": list(required), "properties": properties}


def _schema_of(struct: type[msgspec.Struct]) -> JsonSchema:
    fields = json_fields(struct)
    return _object(
        [name for name, field in fields.items() if field.required],
        {name: _schema_of_kind(field.kind) for name, field in fields.items()},
    )


def _schema_of_kind(kind: type) -> JsonSchema:
    return _schema_of(kind) if issubclass(kind, msgspec.Struct) else {"type": _TYPES[kind]}


_ERROR = _object(
    ["error"],
    {
        "error": _object(
            ["code", "message"],
            {
                **{name: {"type": "string"} for name in ("code", "message", "upstreamCode")},
                **{name: {"type": "number"} for name in ("neededUsd", "remainingUsd")},
                "resetsAt": {"type": "integer"},
                **{name: {"type": "string"} for name in ("limitedBy", "manageUrl")},
            },
        )
    },
)


def documented(
    config: OpenAPIConfig, prefix: str, paths: Mapping[str, str | None]
) -> OpenAPIConfig:
    """Copy the app's OpenAPI settings, and add our paths to the document.

    Our routes are ASGI handlers, which Litestar does not document.

    Args:
        config: the app's settings.
        prefix: the prefix of the app's paths.
        paths: the paths, by the names of their options, and ``models_path``.
    """
    items = {
        prefix + path: item for name, item in _items().items() if (path := paths[name]) is not None
    }

    class Document(OpenAPI):
        # Litestar creates the document, and then sets its paths to those of the app's routes. Add
        # ours there.
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "paths" and value is not None:
                value = {**items, **value}
            super().__setattr__(name, value)

    def to_openapi_schema() -> OpenAPI:
        made = type(config).to_openapi_schema(changed)
        return Document(**{field.name: getattr(made, field.name) for field in fields(made)})

    changed = copy(config)
    changed.to_openapi_schema = to_openapi_schema  # type: ignore[method-assign]
    return changed


def _items() -> dict[str, PathItem]:
    chat = _answer("The answer, or its events.", _OBJECT)
    assert chat.content is not None
    chat.content["text/event-stream"] = _media_type({"type": "string"})
    body = RequestBody(content={"application/json": _media_type(CHAT_BODY)}, required=True)
    return {
        "token_path": PathItem(
            post=_operation(
                "CreateToken",
                "Create a session token",
                _answer("Created.", _schema_of(CreatedSession)),
            )
        ),
        "status_path": PathItem(
            get=_operation(
                "Status",
                "Read the user's connection",
                _answer("Read.", _schema_of(ConnectionStatus)),
            ),
            delete=_operation(
                "Disconnect", "End the user's connection", OpenAPIResponse("Ended."), "204"
            ),
        ),
        "models_path": PathItem(
            get=_operation("Models", "List the models", _answer("The models.", _OBJECT))
        ),
        "inference_path": PathItem(
            post=_operation("Chat", "Call a model on the user's budget", chat, body=body)
        ),
    }


def _operation(
    name: str,
    summary: str,
    answer: OpenAPIResponse,
    status: str = "200",
    *,
    body: RequestBody | None = None,
) -> Operation:
    errors = {str(code): _answer(text, _ERROR) for code, text in ERROR_DESCRIPTIONS.items()}
    return Operation(
        tags=["wattfare"],
        summary=summary,
        operation_id=f"Wattfare{name}",
        request_body=body,
        responses={status: answer, **errors},
    )


def _answer(description: str, schema: JsonSchema) -> OpenAPIResponse:
    return OpenAPIResponse(description, content={"application/json": _media_type(schema)})


def _media_type(schema: JsonSchema) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=cast("Schema", {**schema}))
