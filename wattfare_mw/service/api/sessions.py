"""``POST /sessions``: a session token for one user's browser."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ... import money
from ...types import SessionRequest, check_user_id, encode
from ..tokens import Session
from . import credentials
from .bodies import headers_of, json_response, read_json
from .state import state_of


class NewSession(SessionRequest, frozen=True):
    """A user, and the cap to ask for."""

    app_user_id: str = ""


async def create_session(request: Request) -> Response:
    """Create a session token."""
    state = state_of(request)
    app = await credentials.app_by_secret_key(headers_of(request.scope), state.store)
    body = await read_json(request, NewSession)
    user_id = check_user_id(body.app_user_id)
    await state.rate_limits.session(app.id, user_id)
    limit = body.request_limit.monthly_usd if body.request_limit else None
    epoch = await state.store.epoch(app.id, user_id)
    session = Session(app.id, user_id, money.cap_nanos(limit), epoch)
    return json_response(encode(state.signer.mint(session)))
