"""The plugin's paths and errors in an app's OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import fields
from typing import Any

from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    PathItem,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType

_STRING = Schema(type=OpenAPIType.STRING)
_NUMBER = Schema(type=OpenAPIType.NUMBER)
_INTEGER = Schema(type=OpenAPIType.INTEGER)
_BOOLEAN = Schema(type=OpenAPIType.BOOLEAN)
_OBJECT = Schema(type=OpenAPIType.OBJECT)


def _object(*required: str, **properties: Schema) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, required=list(required), properties={**properties})


_ERROR = _object(
    "error",
    error=_object(
        "code",
        "message",
        code=_STRING,
        message=_STRING,
        upstreamCode=_STRING,
        neededUsd=_NUMBER,
        remainingUsd=_NUMBER,
        resetsAt=_INTEGER,
        limitedBy=_STRING,
        manageUrl=_STRING,
    ),
)
_LIMITS = _object(monthlyUsd=_NUMBER)
_SESSION = _object("token", "expiresAt", token=_STRING, expiresAt=_INTEGER)
_STATUS = _object(
    "connected", connected=_BOOLEAN, limits=_LIMITS, usage=_OBJECT, remainingUsd=_NUMBER
)
_CHAT = _object(
    "model",
    "messages",
    model=_STRING,
    messages=Schema(type=OpenAPIType.ARRAY, items=_OBJECT),
    stream=_BOOLEAN,
    max_tokens=_INTEGER,
)
_ERRORS = {
    "401": "No user is signed in.",
    "402": "The user has connected no budget, or the budget does not pay for the call.",
    "403": "The request comes from another site, or the app does not allow the model.",
    "429": "Too many requests. Wait for `Retry-After` seconds.",
    "502": "Wattfare or the model's provider failed.",
}


def documented(
    config: OpenAPIConfig, prefix: str, paths: Mapping[str, str | None]
) -> OpenAPIConfig:
    """A copy of the app's settings whose document also has our paths.

    The routes are ASGI handlers, which Litestar does not document.

    Args:
        config: the app's settings.
        prefix: the path of the app.
        paths: the paths, by the names of their options, and ``models_path``.
    """
    items = {
        prefix + path: item for name, item in _items().items() if (path := paths[name]) is not None
    }

    class Document(OpenAPI):
        # Litestar makes the document, and then sets the paths of the app's routes.
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
    chat.content["text/event-stream"] = OpenAPIMediaType(schema=_STRING)
    body = RequestBody(content={"application/json": OpenAPIMediaType(schema=_CHAT)}, required=True)
    return {
        "token_path": PathItem(
            post=_operation("CreateToken", "Create a session token", _answer("Created.", _SESSION))
        ),
        "status_path": PathItem(
            get=_operation("Status", "Read the user's connection", _answer("Read.", _STATUS)),
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
    errors = {code: _answer(text, _ERROR) for code, text in _ERRORS.items()}
    return Operation(
        tags=["wattfare"],
        summary=summary,
        operation_id=f"Wattfare{name}",
        request_body=body,
        responses={status: answer, **errors},
    )


def _answer(description: str, schema: Schema) -> OpenAPIResponse:
    return OpenAPIResponse(
        description, content={"application/json": OpenAPIMediaType(schema=schema)}
    )
