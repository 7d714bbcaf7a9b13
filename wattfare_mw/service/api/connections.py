"""A user's connection: ``GET /status`` for the app's backend, and ``/connections`` for the user's
own browser."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from ... import money
from ...money import Usd
from ...types import encode
from .. import errors
from ..ledger import rules
from ..payers import lowering
from ..records import App
from ..tokens import Session
from . import credentials, parameters
from .app_pages import admit_page
from .bodies import headers_of, json_response, read_json
from .rate_limits import address_of
from .state import ServiceState, state_of


class Approval(msgspec.Struct, rename="camel", frozen=True):
    """The body of a request to connect: a cap in USD per month. Without a cap, the cap in the
    session token is used."""

    monthly_usd: Usd | UnsetType | None = UNSET


async def status(request: Request) -> Response:
    """``GET /status``: a user's connection, for the app's backend."""
    state = state_of(request)
    app = await credentials.app_by_secret_key(headers_of(request.scope), state.store)
    user_id = parameters.user_in_query(request.scope["query_string"])
    await state.rate_limits.status(app.id, user_id)
    return await status_response(state, app.id, user_id)


async def connections(request: Request) -> Response:
    """``/connections``, for every method. With one route, a 405 can list all the methods."""
    handlers = {"POST": _approve, "DELETE": _revoke}
    return await handlers.get(request.method, _read)(request)


async def _read(request: Request) -> Response:
    state = state_of(request)
    session, _ = await _session(request, state)
    return await status_response(state, session.app_id, session.user_id)


async def _approve(request: Request) -> Response:
    """Connect a budget, or change its cap."""
    state = state_of(request)
    session, app = await _session(request, state)
    asked = (await read_json(request, Approval, empty=Approval())).monthly_usd
    cap = UNSET if asked is UNSET else money.cap_nanos(asked)
    if app.mode == "test":
        cap = rules.cap_to_approve(cap, session.limit, state.terms)
        if not await state.store.connect(app.id, session.user_id, cap, session.epoch):
            raise lowering.stale_token()
    else:
        # A browser has the session token, so the token alone must not allow spending: a person must
        # approve.
        lower = session.limit if cap is UNSET else cap
        await state.store.at(
            lambda sql, now: lowering.lower_cap(
                sql, app.id, session.user_id, lower, session.epoch, now
            )
        )
    return await status_response(state, session.app_id, session.user_id)


async def _revoke(request: Request) -> Response:
    """Revoke the connection, and stop its calls in flight. A token from before an earlier
    revocation is accepted, too, because revoking is always safe."""
    state = state_of(request)
    session, _ = await _session(request, state)
    await state.store.revoke(session.app_id, session.user_id)
    # From now on, new reservations are refused. Stop the calls that were reserved before.
    state.runner.cut_off(
        errors.revoked(),
        lambda call: (call.app_id, call.user_id) == (session.app_id, session.user_id),
    )
    return Response(status_code=204)


async def _session(request: Request, state: ServiceState) -> tuple[Session, App]:
    await state.rate_limits.browser(address_of(request.scope))
    session, app = await credentials.session_of(
        headers_of(request.scope), state.signer, state.store
    )
    if app.mode != "test":
        await admit_page(request, app)
    await state.rate_limits.connection(session.app_id, session.user_id)
    return session, app


async def status_response(state: ServiceState, app_id: str, user_id: str) -> Response:
    connection, totals = await state.store.account(app_id, user_id)
    return json_response(encode(rules.status(connection, totals, state.terms)))
