"""For operators: ``GET /healthz`` and ``GET /metrics``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..metrics import CONTENT_TYPE
from .bodies import json_response
from .state import state_of


async def health(request: Request) -> Response:
    """Answer 200 if the service is running and its database accepts writes."""
    await state_of(request).health.check()
    return json_response(b'{"status":"ok"}')


async def metrics(request: Request) -> Response:
    """The counters, for Prometheus."""
    exposition = state_of(request).metrics.exposition()
    return Response(exposition, headers={"content-type": CONTENT_TYPE})
