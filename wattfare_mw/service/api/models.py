"""``GET /models``: the models that an app can call; ``GET /models/{id}``: one of them."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...errors import invalid_request
from ...model_entry import find_model
from ...offload import LARGE_BODY, in_thread
from . import credentials
from .bodies import headers_of, json_response
from .state import state_of


async def models(request: Request) -> Response:
    """List the models."""
    return json_response(await _listing(request))


async def model(request: Request) -> Response:
    """One model, as in the list. Its id may have slashes, and may be an alias, or any other name
    that a call can use for the model."""
    name: str = request.path_params["model"]
    listing = await _listing(request)
    state = state_of(request)
    names = dict.fromkeys((name, *state.provider.names_of(state.aliases.get(name, name))))
    try:
        if len(listing) <= LARGE_BODY:
            entry = find_model(listing, names)
        else:
            entry = await in_thread(find_model, listing, names)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        entry = None
    if entry is None:
        raise invalid_request(
            f"There is no model {name[:256]!r} here. GET /models lists the models.", 404
        )
    return json_response(entry)


async def _listing(request: Request) -> bytes:
    state = state_of(request)
    app = await credentials.app_by_secret_key(headers_of(request.scope), state.store)
    await state.rate_limits.models(app.id)
    return await state.provider.models()
