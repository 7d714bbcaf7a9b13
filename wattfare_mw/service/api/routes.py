"""The table of the service's paths. To add a route, write its handler in a module by topic, and add
it here."""

from __future__ import annotations

from starlette.routing import Route

from ...types import API_PREFIX
from .approvals import approval_state, create_approval, redeem_approval
from .chat_completions import ChatCompletions
from .connections import connections, status
from .grants import create_grant
from .models import model, models
from .openapi import openapi
from .operations import health, metrics
from .sessions import create_session

#: The path of inference calls, which `asgi` handles without the router.
COMPLETIONS = f"{API_PREFIX}/chat/completions"
_CONNECTIONS = f"{API_PREFIX}/connections"
_GRANTS = f"{API_PREFIX}/grants"

_APPROVALS = f"{API_PREFIX}/approvals"
_IN_APPROVALS = f"{_APPROVALS}/"
_CORS_PATHS = frozenset({_APPROVALS, _CONNECTIONS, _GRANTS})


def is_cors_path(path: str) -> bool:
    """True if a browser calls this path from an app's page."""
    return path in _CORS_PATHS or path.startswith(_IN_APPROVALS)


def routes(*, with_metrics: bool = False) -> list[Route]:
    """All routes of the API."""
    return [
        Route(f"{API_PREFIX}/sessions", create_session, methods=["POST"]),
        Route(f"{API_PREFIX}/status", status, methods=["GET"]),
        Route(f"{API_PREFIX}/models", models, methods=["GET"]),
        Route(f"{API_PREFIX}/models/{{model:path}}", model, methods=["GET"]),
        Route(COMPLETIONS, ChatCompletions(), methods=["POST"]),
        Route(_CONNECTIONS, connections, methods=["GET", "POST", "DELETE"]),
        Route(_GRANTS, create_grant, methods=["POST"]),
        Route(_APPROVALS, create_approval, methods=["POST"]),
        Route(f"{_APPROVALS}/{{id}}/redeem", redeem_approval, methods=["POST"]),
        Route(f"{_APPROVALS}/{{id}}/state", approval_state, methods=["POST"]),
        Route("/healthz", health, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        *([Route("/metrics", metrics, methods=["GET"])] if with_metrics else []),
    ]
