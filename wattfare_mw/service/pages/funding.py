"""The pages on which payers manage their funding: keys from OpenRouter, and their own keys."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...error_responses import log_server_error
from ...errors import WattfareError, invalid_request
from ..api.framing import log
from ..api.rate_limits import address_of
from ..api.state import state_of
from ..ledger.fundings import Funding, FundingKind
from ..payers import openrouter
from . import cookies
from .caps import read_cap
from .endpoints import error_page, form_of, leads_to_approval, require_sign_in, sign_in_url
from .rendering import page, see_other

#: The cookie of a browser that was redirected to OpenRouter.
COOKIE = "wattfare-openrouter"
#: The cookie with the page to show after OpenRouter. It is used if OpenRouter's answer is refused,
#: because that answer does not name a page.
RETURN_COOKIE = "wattfare-openrouter-return"
#: The form field for the choice of funding.
FIELD = "funding"
#: The page with all funding.
FUNDING = "/funding"
#: The pages that can link here, and to which the payer returns.
_RETURN_TO = re.compile(
    r"/(?:approve/[A-Za-z0-9_-]{1,64}|budget(?:/connections/[0-9a-f]{32})?|funding)"
)
_NOTICES = {
    "added": "You can pay with this from now on.",
    "no-limit": "You can pay with this from now on. OpenRouter gave the key no limit, or a higher "
    "one than you asked for. You can set one on the page of your keys at OpenRouter.",
    "removed": "The key was deleted here, and everything that it paid for has stopped.",
}


class FundingChoices(msgspec.Struct, frozen=True):
    """The ways to pay that a payer can choose, for the templates.

    Attributes:
        mine: the payer's own funding. Invalid funding cannot be chosen.
        operator: True if the operator's key is also a choice.
        needed: True if the payer must choose something. If not, calls cost no real money.
        offers: the kinds of funding that the payer can add.
        return_to: the page with the choice. The funding pages return to it.
    """

    mine: list[Funding]
    operator: bool
    needed: bool
    offers: frozenset[FundingKind]
    return_to: str

    @property
    def add_url(self) -> str:
        """The page to add funding."""
        return funding_url(self.return_to)

    @property
    def refused(self) -> list[Funding]:
        """Funding that the provider refuses, if the payer can reconnect it."""
        return [one for one in self.mine if one.state == "invalid" and one.kind in self.offers]

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
    """The ways to pay that this payer can choose.

    Args:
        return_to: the path of the page with the choice.
    """
    state = state_of(request)
    mine = await state.funding.of_payer(payer_id)
    operator = state.funding.operator_pays
    return FundingChoices(
        mine=mine,
        operator=operator,
        needed=state.funding.needed,
        offers=state.funding.offers,
        return_to=return_to,
    )


def funding_url(return_to: str, **query: str) -> str:
    """The URL of the page with all funding, which returns to ``return_to``."""
    if return_to != FUNDING:
        query["return_to"] = return_to
    return f"{FUNDING}?{urlencode(query)}" if query else FUNDING


def openrouter_origins(request: Request) -> list[str]:
    """The origin to which the OpenRouter form redirects, for the page's policy."""
    origin = state_of(request).funding.openrouter_origin
    return [] if origin is None else [origin]


async def overview(request: Request) -> Response:
    """``GET /funding``: the payer's funding, with forms to add more."""
    return await _overview(request)


async def add_key(request: Request) -> Response:
    """``POST /funding/keys``: add the payer's own key."""
    form = form_of(request)
    return_to = _return_to(form.get("return_to"))
    payer_id = require_sign_in(request, fresh=True, next_=funding_url(return_to)).payer_id
    # Anyone can create a passkey, so limit how many keys a payer can try.
    await state_of(request).rate_limits.key_check(address_of(request.scope))
    replaces = form.get("replaces") or None
    try:
        added = await state_of(request).funding.add_key(
            payer_id, form.get("key", ""), form.get("label", ""), replaces=replaces
        )
    except WattfareError as error:
        if error.code != "invalid_request":
            raise
        return await _overview(request, error=error)
    return _added(return_to, added.lacks_limit)


async def start_openrouter(request: Request) -> Response:
    """``POST /funding/openrouter``: redirect the payer to OpenRouter."""
    form = form_of(request)
    return_to = _return_to(form.get("return_to"))
    payer_id = require_sign_in(request, fresh=True, next_=funding_url(return_to)).payer_id
    try:
        limit = _limit(form.get("limit", ""))
    except WattfareError as error:
        return await _overview(request, error=error)
    started = await state_of(request).funding.start_openrouter(
        payer_id, limit, return_to, cookies.read(request, COOKIE)
    )
    response = see_other(started.url)
    given = {COOKIE: started.cookie, RETURN_COOKIE: quote(return_to, safe="")}
    for name, value in given.items():
        cookies.set_cookie(request, response, name, value, max_age=openrouter.REQUEST_SECONDS)
    return response


async def finish_openrouter(request: Request) -> Response:
    """``GET /funding/openrouter/callback``: the payer returns from OpenRouter."""
    payer_id = require_sign_in(request).payer_id
    given = request.query_params
    state, code = given.get("state", ""), given.get("code", "")
    try:
        added = await state_of(request).funding.finish_openrouter(
            payer_id, state, code, cookies.read(request, COOKIE)
        )
    except WattfareError as error:
        return_to = _return_to(unquote(cookies.read(request, RETURN_COOKIE) or ""))
        return _error_page(request, error, return_to)
    return _added(added.return_to, added.lacks_limit)


async def remove(request: Request) -> Response:
    """``GET`` and ``POST /funding/{id}/remove``: remove funding, after a confirmation."""
    payer_id = require_sign_in(request).payer_id
    funding = state_of(request).funding
    funding_id: str = request.path_params["id"]
    return_to = _given_return_to(request)
    try:
        if request.method == "POST":
            await funding.remove(payer_id, funding_id)
            return see_other(funding_url(return_to, done="removed"))
        one = await funding.find(payer_id, funding_id)
    except WattfareError as error:
        return _error_page(request, error, return_to)
    context = {"one": one, "return_to": return_to, "cancel": funding_url(return_to)}
    return page(request, "funding_remove.html", context, in_popup=return_to.startswith("/approve/"))


async def _overview(request: Request, *, error: WattfareError | None = None) -> Response:
    sign_in = require_sign_in(request)
    state = state_of(request)
    given = _form_or_query(request)
    return_to = _given_return_to(request)
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
        "remove_query": "" if return_to == FUNDING else f"?{urlencode({'return_to': return_to})}",
        "limit": given.get("limit", ""),
        "label": given.get("label", ""),
    }
    leads_to = openrouter_origins(request)
    status = 200 if error is None else error.http_status
    in_popup = leads_to_approval(return_to)
    return page(
        request, "funding.html", context, status=status, leads_to=leads_to, in_popup=in_popup
    )


def _error_page(request: Request, error: WattfareError, return_to: str) -> Response:
    """An error page that links to the page with all funding, which returns to the previous page."""
    log_server_error(log, error, request.scope["wattfare.request_id"])
    return error_page(request, error, ("Ways to pay", funding_url(return_to)))


def _added(return_to: str, lacks_limit: bool) -> Response:
    if lacks_limit:  # the page shows a notice with a link to the next page
        return see_other(funding_url(return_to, done="no-limit"))
    if return_to == FUNDING:
        return see_other(funding_url(FUNDING, done="added"))
    return see_other(return_to)


def _form_or_query(request: Request) -> Any:
    """The fields of a form, or the parameters of a URL."""
    return form_of(request) if request.method == "POST" else request.query_params


def _given_return_to(request: Request) -> str:
    return _return_to(_form_or_query(request).get("return_to"))


def _return_to(path: str | None) -> str:
    """The next page. It is always one of ours."""
    return path if path is not None and _RETURN_TO.fullmatch(path) else FUNDING


def _limit(text: str) -> int | None:
    """The limit from the form, in nano-dollars; None if the field is empty."""
    if not text.strip():
        return None
    try:
        limit = read_cap({"cap": text})
    except WattfareError:
        limit = None
    if not limit:
        raise invalid_request(
            "Enter the monthly limit in USD with a decimal point, such as 12.50, or leave it empty."
        )
    return limit
