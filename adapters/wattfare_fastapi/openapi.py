"""Adds our paths and errors to the app's OpenAPI document."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Optional

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, create_model

from wattfare_mw.framework import (
    CHAT_BODY,
    ERROR_DESCRIPTIONS,
    ConnectionStatus,
    CreatedSession,
    Options,
    json_fields,
)

from .injection import dependency_of


class WattfareErrorDetail(BaseModel):
    """The content of an error."""

    code: str = Field(examples=["not_connected"])
    message: str
    upstreamCode: str | None = None  # noqa: N815
    neededUsd: float | None = None  # noqa: N815
    remainingUsd: float | None = None  # noqa: N815
    resetsAt: int | None = Field(default=None, description="Unix seconds")  # noqa: N815
    limitedBy: str | None = None  # noqa: N815
    manageUrl: str | None = None  # noqa: N815


class WattfareErrorResponse(BaseModel):
    """An error of Wattfare."""

    error: WattfareErrorDetail


def _errors(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": WattfareErrorResponse, "description": description}
        for status, description in descriptions.items()
    }


wattfare_responses: dict[int | str, dict[str, Any]] = _errors(ERROR_DESCRIPTIONS)
"""The error responses of an endpoint that spends a user's budget: ``responses=wattfare_responses``.
"""

_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_CHAT = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": dict(CHAT_BODY)}},
    }
}


def documented_routes(
    app: FastAPI, options: Options, paths: dict[str, str | None]
) -> Iterator[APIRoute]:
    """Add routes that only serve the OpenAPI document. Requests match the real routes, which come
    before them.

    Args:
        app: the app.
        options: the options of :func:`wattfare_fastapi.add_wattfare`.
        paths: the paths, by the names of their options, and ``models_path``.
    """

    def add(method: str, name: str, summary: str, **more: Any) -> Iterator[APIRoute]:
        path = paths[name]
        more.setdefault("responses", wattfare_responses)
        if path is not None:
            yield APIRoute(
                path,
                _signed_in(options.get("resolve_user")),
                methods=[method],
                summary=summary,
                name=f"wattfare_{name.removesuffix('_path')}_{method.lower()}",
                tags=["wattfare"],
                dependencies=app.router.dependencies,
                dependency_overrides_provider=app,
                generate_unique_id_function=app.router.generate_unique_id_function,
                **more,
            )

    session, status = _model(CreatedSession), _model(ConnectionStatus)
    chat = {"description": "The answer, or its events.", "content": {**_JSON_OBJECT, **_STREAM}}
    yield from add("POST", "token_path", "Create a session token", response_model=session)
    yield from add("GET", "status_path", "Read the user's connection", response_model=status)
    yield from add("DELETE", "status_path", "End the user's connection", status_code=204)
    yield from add("GET", "models_path", "List the models", response_model=dict[str, Any])
    yield from add(
        "POST",
        "inference_path",
        "Call a model on the user's budget",
        responses={200: chat, **wattfare_responses},
        openapi_extra=_CHAT,
    )


def _signed_in(resolve_user: Any) -> Callable[..., Any]:
    """An endpoint that depends on ``resolve_user``, so that the document shows the app's
    authentication."""

    def endpoint(**_dependencies: Any) -> None:
        """Never called."""

    dependency = dependency_of(resolve_user)
    parameters: list[inspect.Parameter] = []
    if dependency is not None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter("user", kind, default=dependency, annotation=Any))
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    endpoint.__doc__ = None
    return endpoint


@cache
def _model(struct: type[msgspec.Struct]) -> type[BaseModel]:
    """A pydantic model with the JSON fields of a struct."""
    fields: dict[str, Any] = {
        name: (
            Optional[_type(field.kind)] if field.optional else _type(field.kind),  # noqa: UP045
            ... if field.required else None,
        )
        for name, field in json_fields(struct).items()
    }
    name = struct.__name__.removeprefix("Created")
    # A prefix, because FastAPI would rename models of the app that have the same name.
    return create_model(f"Wattfare{name}", __doc__=inspect.getdoc(struct), **fields)


def _type(kind: type[Any]) -> type[Any]:
    return _model(kind) if issubclass(kind, msgspec.Struct) else kind
