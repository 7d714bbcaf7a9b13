"""``/approvals``: an app's page asks a person for a budget. The person's browser then brings back a
code, and the page exchanges the code for the budget."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec
from sqlalchemy import Connection as Sql
from starlette.requests import Request
from starlette.responses import Response

from ... import money
from ...errors import invalid_request
from ...money import Usd
from ...types import GrantResult, encode
from .. import keys
from ..ledger import rules
from ..ledger.clock import seconds
from ..payers import approval_store, approvals, lowering, return_urls
from ..payers.approvals import Approval, ApprovalRequest
from ..records import USERS_PAY, App
from ..tokens import Session
from . import credentials
from .app_pages import admit_page, page_origin
from .bodies import headers_of, json_response, read_json
from .connections import status_response
from .grants import check_requests
from .rate_limits import address_of
from .state import ServiceState, state_of


class NewApproval(msgspec.Struct, rename="camel", frozen=True):
    """The body of ``POST /approvals``. ``requests`` and ``max_usd`` are only for a grant."""

    return_url: str
    requests: int | None = None
    max_usd: Usd | None = None


class CreatedApproval(msgspec.Struct, rename="camel", frozen=True):
    """A new approval: the page to open, the secret for the app's page, and the expiry time in Unix
    seconds."""

    id: str
    url: str
    secret: str
    expires_at: int

    def __repr__(self) -> str:
        return f"CreatedApproval({self.id!r}, expires_at={self.expires_at})"


class Redemption(msgspec.Struct, rename="camel", frozen=True):
    """The code from the return URL, and the secret of the app's page."""

    code: str
    secret: str

    def __repr__(self) -> str:
        return "Redemption()"


async def create_approval(request: Request) -> Response:
    """``POST /approvals``."""
    state = state_of(request)
    app, session, origins = await _admit(request, state)
    if session is None:
        await state.rate_limits.approval(app.id, address_of(request.scope))
    else:
        await state.rate_limits.user_approval(app.id, session.user_id)
    asked = await read_json(request, NewApproval)
    origin = return_urls.check(asked.return_url, origins, app.mode)
    page = page_origin(request)
    if page != origin and (page is not None or session is None):
        raise invalid_request(
            f"returnUrl has the origin {origin}. It must have the origin of the page that sends"
            " this request.",
            403,
        )
    if session is not None:
        if (asked.requests, asked.max_usd) != (None, None):
            raise invalid_request(
                "`requests` and `maxUsd` are only for a grant. To ask for a grant, use the"
                " publishable key."
            )
        if await state.store.epoch(app.id, session.user_id) != session.epoch:
            raise lowering.stale_token()
        requested = ApprovalRequest(
            kind="connection",
            app_id=app.id,
            user_id=session.user_id,
            epoch=session.epoch,
            origin=origin,
            return_url=asked.return_url,
            account_label=session.account_label,
            asked=session.limit,
        )
    else:
        if not rules.allows_grants(None, state.terms) and not state.funding.offers:
            raise rules.refused_grant()
        requested = ApprovalRequest(
            kind="grant",
            app_id=app.id,
            origin=origin,
            return_url=asked.return_url,
            asked=rules.grant_cap(money.cap_nanos(asked.max_usd), USERS_PAY),
            requests=check_requests(asked.requests),
        )
    secret = approvals.new_secret()

    def begin(sql: Sql, now: datetime) -> Approval:
        approval = approvals.begin(requested, secret, seconds(now))
        approval_store.add(sql, approval, seconds(now))
        return approval

    approval = await state.store.at(begin)
    url = f"{state.public_url}/approve/{approval.id}"
    return json_response(encode(CreatedApproval(approval.id, url, secret, approval.expires_at)))


class StateQuestion(msgspec.Struct, frozen=True):
    """The body of ``POST /approvals/{id}/state``: the secret of the app's page."""

    secret: str

    def __repr__(self) -> str:
        return "StateQuestion()"


class ApprovalState(msgspec.Struct, frozen=True):
    """The state of an approval: ``pending``, ``approved``, ``denied``, ``redeemed`` or ``expired``.
    ``open`` is False if the person has closed the page without an answer."""

    state: str
    open: bool


async def approval_state(request: Request) -> Response:
    """``POST /approvals/{id}/state``, for an app's page that cannot see its popup."""
    state = state_of(request)
    app, session, _ = await _admit(request, state)
    given = await read_json(request, StateQuestion)
    find = _finder(request, app, session, given.secret)

    def look(sql: Sql, now: datetime) -> ApprovalState:
        approval = find(sql, lock=False)
        if approvals.is_over(approval, seconds(now)):
            return ApprovalState("expired", open=False)
        return ApprovalState(approval.state, open=not approval.left)

    return json_response(encode(await state.store.at(look)))


async def redeem_approval(request: Request) -> Response:
    """``POST /approvals/{id}/redeem``."""
    state = state_of(request)
    app, session, _ = await _admit(request, state)
    approval_id: str = request.path_params["id"]
    address = address_of(request.scope)
    await state.rate_limits.redemption(approval_id, address)
    given = await read_json(request, Redemption)
    find = _finder(request, app, session, given.secret)

    if session is not None:

        def connect(sql: Sql, now: datetime) -> None:
            approval = find(sql)
            approval_store.redeem(sql, approval, given.code, seconds(now))
            approval_store.connect(sql, approval, state.terms, now)

        await state.store.at(connect)
        return await status_response(state, app.id, session.user_id)

    token = keys.new_grant_token()
    await _count_grant(state, app, await state.store.transact(find), address)

    def grant(sql: Sql, now: datetime) -> GrantResult:
        approval = find(sql)
        approval_store.redeem(sql, approval, given.code, seconds(now))
        return approval_store.grant(sql, approval, token, state.terms, now)

    return json_response(encode(await state.store.at(grant)))


class _Find(Protocol):
    def __call__(self, sql: Sql, *, lock: bool = True) -> Approval: ...


def _finder(request: Request, app: App, session: Session | None, secret: str) -> _Find:
    """A function that finds the approval in this request's path, if the page that sends the request
    has created the approval."""
    approval_id: str = request.path_params["id"]
    origin = page_origin(request)

    def find(sql: Sql, *, lock: bool = True) -> Approval:
        return approvals.check_owner(
            approval_store.find(sql, approval_id, lock=lock),
            kind="grant" if session is None else "connection",
            app_id=app.id,
            user_id=None if session is None else session.user_id,
            origin=origin,
            secret=secret,
        )

    return find


async def _count_grant(state: ServiceState, app: App, approval: Approval, address: str) -> None:
    """Count a grant that the operator pays for. Anyone can create passkeys, so the limit is by
    address. It is the same limit as for grants of test apps."""
    terms = state.terms
    if approval.state != "approved" or not rules.operator_pays(approval.funding_id, terms):
        return
    await state.rate_limits.grant(app.id, address)
    largest = rules.largest_grant(terms)
    if largest is not None and terms.grant_ceiling is not None:
        cap = rules.grant_cap(approval.requested.asked, terms)
        await state.rate_limits.grant_hold(app.id, address, cap, terms.grant_ceiling, largest)


async def _admit(
    request: Request, state: ServiceState
) -> tuple[App, Session | None, frozenset[str]]:
    """The app that sends the request, the session of its user (None with the publishable key), and
    the app's origins."""
    await state.rate_limits.browser(address_of(request.scope))
    headers = headers_of(request.scope)
    if credentials.is_publishable(headers):
        app, session = await credentials.app_by_publishable_key(headers, state.store), None
    else:
        session, app = await credentials.session_of(headers, state.signer, state.store)
    origins = await admit_page(request, app)
    if session is not None:
        await state.rate_limits.connection(app.id, session.user_id)
    return app, session, origins
