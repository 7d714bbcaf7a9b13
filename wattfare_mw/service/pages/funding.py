"""The pages where payers say what they pay with: keys from OpenRouter, and keys of their own."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...errors import WattfareError, invalid_request
from ..api.rate_limits import address_of
from ..api.state import state_of
from ..ledger.fundings import Funding
from ..payers import openrouter
from . import cookies
from .caps import read_cap
from .endpoints import error_page, form_of, require_sign_in, sign_in_url
from .rendering import page, see_other

#: The cookie of a browser that was sent to OpenRouter.
COOKIE = "wattfare-openrouter"
#: The field of a form in which a payer chooses what pays.
FIELD = "funding"
#: The page of all funding.
FUNDING = "/funding"
#: The pages that can lead here, and that come next afterwards.
_RETURN_TO = re.compile(r"/(?:approve/[A-Za-z0-9_-]{1,64}|budget|funding)")
_NOTICES = {
    "added": "You can pay with this from now on.",
    "no-limit": "You can pay with this from now on. OpenRouter gave the key no limit, or a higher "
    "one than you asked for. You can set one on the page of your keys at OpenRouter.",
    "removed": "Its key is deleted here, and all that it paid for has stopped.",
}


class FundingChoices(msgspec.Struct, frozen=True):
    """What a payer can choose from, for the template ``funding_choice.html``.

    Attributes:
        mine: what the payer has added. What is not valid cannot be chosen.
        operator: does the operator's key pay, too?
        needed: must the payer choose something? If not, calls cost no real money.
        may_add: can the payer add something?
        add_url: the page to add something, which leads back.
    """

    mine: list[Funding]
    operator: bool
    needed: bool
    may_add: bool
    add_url: str

    @property
    def usable(self) -> bool:
        """True if there is something to choose."""
        return self.operator or self.first is not None

    def has(self, funding_id: str) -> bool:
        """True if this funding can be chosen."""
        return any(one.id == funding_id and one.state == "valid" for one in self.mine)

    @property
    def first(self) -> str | None:
        """The id of the first funding that can be chosen; None if there is none."""
        return next((one.id for one in self.mine if one.state == "valid"), None)


async def funding_choices(request: Request, payer_id: str, return_to: str) -> FundingChoices:
    """What this payer can choose from.

    Args:
        return_to: the path of the page that asks.
    """
    state = state_of(request)
    mine = await state.funding.of_payer(payer_id)
    operator = state.funding.operator_pays
    return FundingChoices(
        mine=mine,
        operator=operator,
        needed=state.funding.needed,
        may_add=bool(state.funding.offers),
        add_url=f"{FUNDING}?{urlencode({'return_to': return_to})}",
    )


async def overview(request: Request) -> Response:
    """``GET /funding``: what the payer pays with, and how to add more."""
    return await _overview(request)


async def add_key(request: Request) -> Response:
    """``POST /funding/keys``: a key of the payer's own."""
    payer_id = require_sign_in(request, fresh=True).payer_id
    # Anyone can make a passkey, and must not try out keys by the thousand here.
    await state_of(request).rate_limits.key_check(address_of(request.scope))
    form = form_of(request)
    replaces = form.get("replaces") or None
    try:
        added = await state_of(request).funding.add_key(
            payer_id, form.get("key", ""), form.get("label", ""), replaces=replaces
        )
    except WattfareError as error:
        if error.code != "invalid_request":
            raise
        return await _overview(request, error=error)
    return _added(_return_to(form.get("return_to")), added.lacks_limit)


async def start_openrouter(request: Request) -> Response:
    """``POST /funding/openrouter``: lead the payer to OpenRouter."""
    payer_id = require_sign_in(request, fresh=True).payer_id
    form = form_of(request)
    try:
        limit = _limit(form.get("limit", ""))
    except WattfareError as error:
        return await _overview(request, error=error)
    started = await state_of(request).funding.start_openrouter(
        payer_id, limit, _return_to(form.get("return_to")), cookies.read(request, COOKIE)
    )
    response = see_other(started.url)
    cookies.set_cookie(
        request, response, COOKIE, started.cookie, max_age=openrouter.REQUEST_SECONDS
    )
    return response


async def finish_openrouter(request: Request) -> Response:
    """``GET /funding/openrouter/callback``: the payer comes back from OpenRouter."""
    payer_id = require_sign_in(request).payer_id
    given = request.query_params
    state, code = given.get("state", ""), given.get("code", "")
    try:
        added = await state_of(request).funding.finish_openrouter(
            payer_id, state, code, cookies.read(request, COOKIE)
        )
    except WattfareError as error:
        return error_page(request, error, ("Ways to pay", FUNDING))
    return _added(added.return_to, added.lacks_limit)


async def remove(request: Request) -> Response:
    """``GET`` and ``POST /funding/{id}/remove``: ask, and remove."""
    payer_id = require_sign_in(request).payer_id
    funding = state_of(request).funding
    funding_id: str = request.path_params["id"]
    if request.method == "POST":
        await funding.remove(payer_id, funding_id)
        return see_other(f"{FUNDING}?done=removed")
    one = await funding.find(payer_id, funding_id)
    return page(request, "funding_remove.html", {"one": one})


async def _overview(request: Request, *, error: WattfareError | None = None) -> Response:
    sign_in = require_sign_in(request)
    state = state_of(request)
    given: Any = form_of(request) if request.method == "POST" else request.query_params
    return_to = _return_to(given.get("return_to"))
    offers = state.funding.offers
    context = {
        "mine": await state.funding.of_payer(sign_in.payer_id),
        "offers": offers,
        "operator": state.funding.operator_pays,
        "host": state.funding.upstream_host,
        "notice": _NOTICES.get(request.query_params.get("done", "")),
        "error": None if error is None else error.message,
        "needs_sign_in": not sign_in.is_fresh(),
        "sign_in_url": sign_in_url(request, again=True),
        "return_to": return_to,
        "limit": given.get("limit", ""),
        "label": given.get("label", ""),
    }
    # The form leads to OpenRouter's page, by a redirect.
    leads_to = state.funding.openrouter_origin
    status = 200 if error is None else error.http_status
    in_popup = return_to.startswith("/approve/")
    return page(
        request, "funding.html", context, status=status, leads_to=leads_to, in_popup=in_popup
    )


def _added(return_to: str, lacks_limit: bool) -> Response:
    if return_to == FUNDING or lacks_limit:
        query = {"done": "no-limit" if lacks_limit else "added"}
        if return_to != FUNDING:  # the page has a notice, and then leads on
            query["return_to"] = return_to
        return see_other(f"{FUNDING}?{urlencode(query)}")
    return see_other(return_to)


def _return_to(path: str | None) -> str:
    """The page that comes next: one of ours, whatever the browser says."""
    return path if path is not None and _RETURN_TO.fullmatch(path) else FUNDING


def _limit(text: str) -> int | None:
    """A limit that a person has written, in nano-dollars; None if the field is empty."""
    if not text.strip():
        return None
    try:
        limit = read_cap({"cap": text})
    except WattfareError:
        limit = None
    if not limit:
        raise invalid_request(
            "Write the monthly limit in USD with a point, such as 12.50, or leave it empty."
        )
    return limit
