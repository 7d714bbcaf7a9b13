"""``POST /grants``: creates a one-time grant for a test app, without approval."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ... import money
from ...errors import invalid_request
from ...money import Usd
from ...types import GrantResult, encode
from .. import keys
from ..ledger import rules
from ..records import GRANT_SECONDS, GrantBudget
from . import credentials
from .app_pages import admit_page
from .bodies import headers_of, json_response, read_json
from .rate_limits import address_of
from .state import state_of

#: The maximum number of requests of one grant.
MAX_GRANT_REQUESTS = 1000


class NewGrant(msgspec.Struct, rename="camel", frozen=True):
    """The body of ``POST /grants``: a number of requests, and the maximum amount for all of them,
    in USD."""

    requests: int
    max_usd: Usd | None = None


async def create_grant(request: Request) -> Response:
    """Create a grant."""
    state = state_of(request)
    address = address_of(request.scope)
    await state.rate_limits.browser(address)
    app = await credentials.app_by_publishable_key(headers_of(request.scope), state.store)
    if app.mode != "test":
        await admit_page(request, app)
        raise invalid_request(
            "A person must approve a grant of a live app on a page of the service. Create an"
            " approval with POST /approvals.",
            403,
        )
    asked = await read_json(request, NewGrant)
    check_requests(asked.requests)
    terms = state.terms
    cap = rules.grant_cap(money.cap_nanos(asked.max_usd), terms)
    await state.rate_limits.grant(app.id, address)
    largest = rules.largest_grant(terms)
    if largest is not None and terms.grant_ceiling is not None:
        await state.rate_limits.grant_hold(app.id, address, cap, terms.grant_ceiling, largest)
    token = keys.new_grant_token()
    now = int(state.clock())
    expires_at = now + GRANT_SECONDS
    grant = GrantBudget(asked.requests, cap, expires_at)
    await state.store.add_grant(app.id, keys.digest(token), grant, terms, now)
    return json_response(encode(GrantResult(token, expires_at, asked.requests)))


def check_requests(requests: int | None) -> int:
    """The number of requests of a grant.

    Raises:
        WattfareError: ``invalid_request``; the number is missing, too small or too large.
    """
    if requests is None or not 1 <= requests <= MAX_GRANT_REQUESTS:
        raise invalid_request(
            f"`requests` must be a whole number from 1 to {MAX_GRANT_REQUESTS:,}."
        )
    return requests
