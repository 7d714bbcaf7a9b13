"""``GET /models``: the models that an app can call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from . import credentials
from .bodies import headers_of, json_response
from .state import state_of


async def models(request: Request) -> Response:
    """List the models."""
    state = state_of(request)
    app = await credentials.app_by_secret_key(headers_of(request.scope), state.store)
    await state.rate_limits.models(app.id)
    return json_response(await state.provider.models())
