"""``GET /openapi.json``: the service's HTTP API as an OpenAPI 3.1 document."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import types
from ...errors import STATUS_BY_CODE
from ...money import MAX_AMOUNT_USD, MAX_CAP_USD, Usd
from ...types import (
    API_PREFIX,
    GRANT_HEADER,
    LOW_BUDGET_HEADER,
    LOWERED_HEADER,
    MAX_ACCOUNT_LABEL,
    MAX_MODEL_CHARACTERS,
    MAX_USER_ID,
    MAX_WAIT_SECONDS,
    RESERVED_HEADER,
    USER_HEADER,
    WAIT_HEADER,
    CreatedSession,
    GrantResult,
    encode,
)
from ..chat.allowed_fields import MAX_N, REQUEST, Kind
from ..chat.request import MAX_TOKENS
from ..metrics import CONTENT_TYPE
from ..payers.return_urls import MAX_RETURN_URL
from .approvals import (
    ApprovalState,
    CreatedApproval,
    NewApproval,
    Redemption,
    StateQuestion,
)
from .bodies import JSON, json_response
from .connections import Approval
from .grants import MAX_GRANT_REQUESTS, NewGrant
from .parameters import KEY_HEADER, MAX_KEY
from .sessions import NewSession

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_WHY = {
    400: "The request is not valid.",
    401: "The credential is missing or not valid.",
    402: "The user or the grant cannot pay.",
    403: "This app may not do this, or the upstream's moderation refuses the prompt.",
    404: "There is no such model.",
    408: "The body arrived too slowly.",
    409: "A call with this Idempotency-Key was made before, or the approval is in another state.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A call with this Idempotency-Key had another body.",
    429: "Too many requests. Retry-After says how many seconds to wait.",
    500: "The service failed.",
    502: "The upstream failed.",
    503: "The service or its database is not available. Try again later.",
}
#: The credentials that an app's page can send. It sends one of them.
_OF_PAGES = ("sessionToken", "publishableKey")
_ANY_CALL = (400, 429, 500, 503)
_WITH_BODY = (408, 413, 415)


# A response always has these fields. Here they have no defaults, so the schema requires them.


class Usage(types.Usage, frozen=True, kw_only=True):
    """The amount billed in the current month (UTC), in USD."""

    monthly_usd: Usd  # pyright: ignore[reportGeneralTypeIssues]


class ConnectionStatus(types.ConnectionStatus, frozen=True, kw_only=True):
    """A user's connection to this app."""

    usage: Usage  # pyright: ignore[reportGeneralTypeIssues]


async def openapi(request: Request) -> Response:
    """Serve the document. It has only the paths that this service has."""
    paths = frozenset(route.path_format for route in request.app.routes if isinstance(route, Route))
    return json_response(_encoded(paths))


@lru_cache(maxsize=4)
def _encoded(paths: frozenset[str]) -> bytes:
    return encode(document(paths))


def document(paths: frozenset[str]) -> Json:
    """The document, with only those of its paths that are in ``paths``."""
    shapes, schemas = msgspec.json.schema_components(
        [
            NewSession,
            CreatedSession,
            ConnectionStatus,
            Approval,
            NewGrant,
            GrantResult,
            NewApproval,
            CreatedApproval,
            Redemption,
            StateQuestion,
            ApprovalState,
        ],
        schema_hook=_schema_of,
        ref_template=_REF,
    )
    new_session, created_session, status, approval, new_grant, grant, *rest = shapes
    new_approval, created_approval, redemption, state_question, approval_state = rest
    schemas["NewSession"]["properties"]["appUserId"] = _USER_ID
    schemas["NewSession"]["properties"]["accountLabel"] = _or_null(
        {"type": "string", "maxLength": MAX_ACCOUNT_LABEL}
    )
    schemas["NewApproval"]["properties"]["returnUrl"] = {
        "type": "string",
        "format": "uri",
        "maxLength": MAX_RETURN_URL,
    }
    schemas["NewApproval"]["properties"]["requests"] = _or_null(_whole(MAX_GRANT_REQUESTS))
    schemas["NewSession"]["required"] = ["appUserId"]
    schemas["NewGrant"]["properties"]["requests"] = _whole(MAX_GRANT_REQUESTS)
    for name, field in (
        ("RequestLimit", "monthlyUsd"),
        ("Approval", "monthlyUsd"),
        ("NewGrant", "maxUsd"),
        ("NewApproval", "maxUsd"),
    ):
        schemas[name]["properties"][field] = _CAP
    for schema in schemas.values():
        # Only the first line of a docstring is for users of the API.
        schema["description"] = schema.get("description", "").split("\n")[0]
    api = {
        f"{API_PREFIX}/sessions": {
            "post": _operation(
                "Create a session token for one user's browser",
                _json_answer(created_session),
                _WITH_BODY,
                security="secretKey",
                body=new_session,
            )
        },
        f"{API_PREFIX}/status": {
            "get": _operation(
                "Read a user's connection",
                _json_answer(status),
                security="secretKey",
                parameters=[_parameter("query", "appUserId", _USER_ID, required=True)],
            )
        },
        f"{API_PREFIX}/models": {
            "get": _operation(
                "List the models",
                _json_answer(_MODELS),
                (502,),
                security="secretKey",
            )
        },
        f"{API_PREFIX}/models/{{model}}": {
            "get": _operation(
                "Read one model",
                _json_answer(_MODEL),
                (404, 502),
                security="secretKey",
                parameters=[
                    _parameter(
                        "path",
                        "model",
                        {"type": "string", "minLength": 1},
                        "The model's id. Its slashes may be percent-encoded.",
                        required=True,
                    )
                ],
            )
        },
        f"{API_PREFIX}/chat/completions": {
            "post": _operation(
                "Call a model, billed to a user or a grant",
                _COMPLETION_ANSWER,
                (*_WITH_BODY, 402, 403, 409, 422, 502),
                security="secretKey",
                parameters=_PAYMENT,
                body=_CHAT,
            )
        },
        f"{API_PREFIX}/connections": {
            "get": _operation(
                "Read the session's connection",
                _json_answer(status),
                security="sessionToken",
            ),
            "post": _operation(
                "Connect a budget of a test app, or change its cap; for a live app, lower the cap",
                _json_answer(status),
                (*_WITH_BODY, 403),
                security="sessionToken",
                body=approval,
                body_required=False,
            ),
            "delete": _operation(
                "Revoke the connection",
                {"204": {"description": "It is revoked."}},
                security="sessionToken",
            ),
        },
        f"{API_PREFIX}/grants": {
            "post": _operation(
                "Create a one-time grant, for a test app",
                _json_answer(grant),
                (*_WITH_BODY, 403),
                security="publishableKey",
                body=new_grant,
            )
        },
        f"{API_PREFIX}/approvals": {
            "post": _operation(
                "Ask a person to approve a connection or, with the publishable key, a grant",
                _json_answer(created_approval),
                (*_WITH_BODY, 403),
                security=_OF_PAGES,
                body=new_approval,
            )
        },
        f"{API_PREFIX}/approvals/{{id}}/redeem": {
            "post": _operation(
                "Exchange a code for the approved connection or grant",
                _json_answer({"anyOf": [status, grant]}),
                (*_WITH_BODY, 402, 403, 409),
                security=_OF_PAGES,
                parameters=[_parameter("path", "id", {"type": "string"}, required=True)],
                body=redemption,
            )
        },
        f"{API_PREFIX}/approvals/{{id}}/state": {
            "post": _operation(
                "Read the state of an approval, and whether its page is still open",
                _json_answer(approval_state),
                (*_WITH_BODY, 403),
                security=_OF_PAGES,
                parameters=[_parameter("path", "id", {"type": "string"}, required=True)],
                body=state_question,
            )
        },
        "/healthz": {"get": _operation("Check the service and its database", _json_answer({}))},
        "/metrics": {
            "get": _operation(
                "Read the counters, for Prometheus", _answer(CONTENT_TYPE, {"type": "string"})
            )
        },
        "/openapi.json": {
            "get": _operation("Read this document", _json_answer({"type": "object"}))
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wattfare-compatible service",
            "version": importlib.metadata.version("wattfare-mw"),
        },
        "paths": {path: item for path, item in api.items() if path in paths},
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {
                "secretKey": _bearer("The app's secret key, `sk_…`. For the app's backend only."),
                "sessionToken": _bearer("A session token, for one user's browser."),
                "publishableKey": _bearer("The app's publishable key, `pk_…`."),
            },
        },
    }


def _schema_of(shape: type[Any]) -> Json:
    if shape is Usd:
        return {
            "type": "number",
            "minimum": 0,
            "maximum": MAX_AMOUNT_USD,
            "description": "US dollars. Read all the digits: do not use a float.",
        }
    raise NotImplementedError(f"{shape.__name__} has no schema here")


def _operation(
    summary: str,
    answers: Json,
    errors: tuple[int, ...] = (),
    *,
    security: str | tuple[str, ...] = (),
    parameters: list[Json] | None = None,
    body: Json | None = None,
    body_required: bool = True,
) -> Json:
    schemes = (security,) if isinstance(security, str) else security
    statuses = {*_ANY_CALL, *errors, *((401,) if security else ())}
    failures = {
        str(status): {"description": _WHY[status], **_content(JSON, _reference("Error"))}
        for status in sorted(statuses)
    }
    operation: Json = {
        "summary": summary,
        "security": [{scheme: []} for scheme in schemes],
        "responses": {**answers, **failures},
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": body_required, **_content(JSON, body)}
    return operation


def _content(kind: str, schema: Json) -> Json:
    return {"content": {kind: {"schema": schema}}}


def _answer(kind: str, schema: Json) -> Json:
    return {"200": {"description": "It is done.", **_content(kind, schema)}}


def _json_answer(schema: Json) -> Json:
    return _answer(JSON, schema)


def _reference(name: str) -> Json:
    return {"$ref": _REF.format(name=name)}


def _bearer(description: str) -> Json:
    return {"type": "http", "scheme": "bearer", "description": description}


def _parameter(
    place: str, name: str, schema: Json, description: str = "", *, required: bool = False
) -> Json:
    parameter: Json = {"in": place, "name": name, "required": required, "schema": schema}
    return {**parameter, "description": description} if description else parameter


def _whole(most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_CAP = _or_null({"type": "number", "minimum": 0, "maximum": MAX_CAP_USD})
_USER_ID: Json = {"type": "string", "minLength": 1, "maxLength": MAX_USER_ID}

_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"enum": sorted(STATUS_BY_CODE)},
                "message": {"type": "string", "description": "For people."},
                "upstreamCode": {
                    "type": "string",
                    "description": "The upstream's own code, such as `context_length_exceeded`.",
                },
                "neededUsd": {
                    "type": "number",
                    "minimum": 0,
                    "description": "The minimum amount that the call needs, in USD.",
                },
                "remainingUsd": {
                    "type": "number",
                    "minimum": 0,
                    "description": "The amount that is left for the call, in USD.",
                },
                "resetsAt": {
                    "type": "integer",
                    "description": "When the budget resets, in Unix seconds.",
                },
                "limitedBy": {
                    "enum": ["cap", "ceiling", "grant", "in_flight", "funding"],
                    "description": "The limit that was reached: the user's cap, the operator's"
                    " limit, the grant's cap, other calls that have not ended, or the payer's own"
                    " key or account at the provider.",
                },
                "manageUrl": {
                    "type": "string",
                    "description": "The page on which the user changes the budget.",
                },
                "requestId": {
                    "type": "string",
                    "description": "In an event of a stream: the id of the call.",
                },
                "retryAfter": {
                    "type": "number",
                    "minimum": 0,
                    "description": "In an event of a stream: how long to wait, in seconds.",
                },
            },
        }
    },
}

_MODEL: Json = {
    "type": "object",
    "required": ["id"],
    "properties": {"id": {"type": "string"}},
}
_MODELS: Json = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "array", "items": _MODEL}},
}

_PAYMENT: list[Json] = [
    _parameter(
        "header",
        USER_HEADER,
        {"type": "string"},
        "The user who pays. A user id that is not visible ASCII, or has a `%`, is percent-encoded"
        f" as UTF-8. Send either this or {GRANT_HEADER}.",
    ),
    _parameter("header", GRANT_HEADER, {"type": "string"}, "The token of the grant that pays."),
    _parameter(
        "header",
        LOW_BUDGET_HEADER,
        {"enum": ["lower", "refuse"]},
        "What to do if the budget pays for less than the call asks for: lower its token limit"
        " (the default), or refuse the call.",
    ),
    _parameter(
        "header",
        WAIT_HEADER,
        {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS},
        "How long the call may wait if only other calls of the same user or grant hold the budget,"
        " in seconds.",
    ),
    _parameter(
        "header",
        KEY_HEADER,
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
        "A key for the call. In 24 hours, the service makes only one call with the same key.",
    ),
]

_TEXT: Json = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        },
    ]
}

# The names come from the table of allowed fields, which has exact rules for their values.
_CHAT: Json = {
    "type": "object",
    "description": "The fields that the service accepts. Its documentation describes the cost of"
    " each.",
    "required": ["model", "messages"],
    "additionalProperties": False,
    "properties": {
        **{name: {} for name, field in REQUEST.items() if field.kind != Kind.REFUSED},
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_CHARACTERS},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {"role": {"type": "string"}, "content": _or_null(_TEXT)},
            },
        },
        "stream": _or_null({"type": "boolean"}),
        "max_tokens": _or_null(_whole(MAX_TOKENS)),
        "max_completion_tokens": _or_null(_whole(MAX_TOKENS)),
        "n": _or_null(_whole(MAX_N)),
    },
}

_COMPLETION_ANSWER: Json = {
    "200": {
        "description": "The answer; with `stream: true`, as events.",
        "headers": {
            LOWERED_HEADER: {
                "description": "The lowered token limit. Only present if the service has lowered"
                " it.",
                "schema": {"type": "integer"},
            },
            RESERVED_HEADER: {
                "description": "The amount that the call holds, in USD. Only present if the cost"
                " has no bound.",
                "schema": {"type": "string"},
            },
        },
        "content": {
            JSON: {"schema": {"type": "object", "required": ["choices"]}},
            "text/event-stream": {},
        },
    }
}
