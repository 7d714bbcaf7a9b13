"""``POST /sessions``: a session token for one user's browser."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ... import money
from ...errors import invalid_request
from ...types import MAX_ACCOUNT_LABEL, SessionRequest, check_user_id, encode, is_hidden
from ..tokens import Session
from . import credentials
from .bodies import headers_of, json_response, read_json
from .state import state_of


class NewSession(SessionRequest, frozen=True):
    """The body of ``POST /sessions``: a user, and the cap to ask for. ``account_label`` is the name
    of the user's account at the app. The approval page shows it."""

    app_user_id: str = ""
    account_label: str | None = None


async def create_session(request: Request) -> Response:
    """Create a session token."""
    state = state_of(request)
    app = await credentials.app_by_secret_key(headers_of(request.scope), state.store)
    body = await read_json(request, NewSession)
    user_id = check_user_id(body.app_user_id)
    label = _check_label(body.account_label)
    await state.rate_limits.session(app.id, user_id)
    limit = body.request_limit.monthly_usd if body.request_limit else None
    epoch = await state.store.epoch(app.id, user_id)
    session = Session(app.id, user_id, money.cap_nanos(limit), epoch, label)
    return json_response(encode(state.signer.mint(session)))


def _check_label(label: str | None) -> str | None:
    """Check that a person can read the label. None if there is no label.

    Raises:
        WattfareError: ``invalid_request``; the label is too long, or has unprintable characters or
            marks of direction.
    """
    if label is None or not label.strip():
        return None
    if len(label) > MAX_ACCOUNT_LABEL or any(map(is_hidden, label)):
        raise invalid_request(
            f"`accountLabel` must be text of up to {MAX_ACCOUNT_LABEL} characters, without control "
            "characters and marks of direction."
        )
    return label.strip()
