"""*Approve*: shows a request for a budget, which the person allows or denies.

After any answer, the page returns to the app. The returned code has no effect until the app's own
page redeems it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

import msgspec
from sqlalchemy import Connection as Sql
from starlette.requests import Request
from starlette.responses import Response

from ...errors import WattfareError, invalid_request
from ..api.state import state_of
from ..keys import digest
from ..ledger import rules
from ..ledger.clock import seconds
from ..models import echo
from ..payers import approval_store, approvals, estimates, return_urls
from ..payers.approvals import Approval, Decision
from ..payers.estimates import Estimate
from ..payers.sign_ins import SignIn
from ..records import App
from .caps import CAP, UNLIMITED, read_cap, written
from .endpoints import error_page, form_of, sign_in_of
from .funding import FIELD, funding_choices, openrouter_origins
from .rendering import page, see_other

#: The price of a call of the built-in model with 100 tokens in and out, at $0.000001 and $0.000002
#: each. The model repeats its prompt.
_ECHO = Estimate("wattfare/echo", 100 * 1000 + 100 * 2000)


class _Seen(msgspec.Struct, frozen=True):
    """An approval with the other data of its page.

    Attributes:
        other_payer: another person whose budget is connected to this user now.
        own_cap: the person's current cap; UNSET if they are not connected.
        own_funding: the id of the current funding; None for the operator's, or if there is none.
    """

    approval: Approval
    app: App
    other_payer: str | None = None
    is_connected: bool = False
    own_cap: int | None = None
    own_funding: str | None = None
    estimate: Estimate | None = None


async def show(request: Request) -> Response:
    """``GET /approve/{id}``."""
    sign_in = sign_in_of(request)
    try:
        seen = await _see(request, sign_in)
    except WattfareError as error:
        response = await _over(request, error)
        if error.http_status == HTTPStatus.CONFLICT:
            # Not an error status: people come here with the back button, and a browser logs error
            # statuses.
            response.status_code = HTTPStatus.OK
        return response
    if seen.approval.left:
        await _note_presence(request, left=False)
    if sign_in is None or not sign_in.is_fresh():
        return _page(request, "approve_sign_in.html", seen)
    cap = written(approvals.proposed_cap(seen.approval.requested, seen.own_cap))
    return await _ask(request, seen, cap, funding=seen.own_funding or "")


async def leave(request: Request) -> Response:
    """``POST /approve/{id}/left``: the person closed the page, or reloaded it (field ``open``)."""
    await _note_presence(request, left="open" not in form_of(request))
    return Response(status_code=204)


async def _note_presence(request: Request, *, left: bool) -> None:
    approval_id: str = request.path_params["id"]
    await state_of(request).store.at(
        lambda sql, now: approval_store.leave(sql, approval_id, seconds(now) if left else None)
    )


async def answer(request: Request) -> Response:
    """``POST /approve/{id}``."""
    state, form = state_of(request), form_of(request)
    approval_id: str = request.path_params["id"]
    sign_in = sign_in_of(request)
    try:
        if form.get("decision") != "allow":
            denied = await state.store.at(
                lambda sql, now: approval_store.deny(sql, approval_id, seconds(now))
            )
            return _return(denied, {return_urls.DENIED: "1"})
        if sign_in is None or not sign_in.is_fresh():
            return see_other(f"/approve/{approval_id}")  # which asks to sign in
        seen = await _see(request, sign_in, again=True)
    except WattfareError as error:
        return await _over(request, error)
    given = form.get(FIELD, "")[:64]

    async def ask_again(**errors: str) -> Response:
        typed, unlimited = form.get(CAP, "")[:40], UNLIMITED in form
        return await _ask(
            request, seen, typed, unlimited=unlimited, funding=given, status=400, **errors
        )

    try:
        cap = read_cap(form) if seen.approval.requested.kind == "connection" else None
    except WattfareError as error:
        return await ask_again(error=error.message)
    try:
        funding_id = await state.funding.chosen(sign_in.payer_id, given)
        is_grant = seen.approval.requested.kind == "grant"
        if is_grant and not rules.allows_grants(funding_id, state.terms):
            raise invalid_request(
                "This service does not pay for one-time budgets. Choose another way to pay."
            )
    except WattfareError as error:
        if error.code != "invalid_request":
            raise
        return await ask_again(funding_error=error.message)
    # A script delays the Allow button until the person has seen it. Without scripts, a second page
    # does.
    agreed = form.get("replace") if seen.other_payer is not None else None
    replaces = seen.other_payer if agreed == _named(seen.approval, seen.other_payer) else None
    has_waited = "ready" in form or "confirmed" in form
    if not has_waited or replaces != seen.other_payer:
        return _confirm(request, seen, cap, given)
    decision = Decision(
        payer_id=sign_in.payer_id, cap=cap, funding_id=funding_id, replaces=replaces
    )

    def allow(sql: Sql, now: datetime) -> tuple[Approval, str]:
        return approval_store.allow(sql, approval_id, decision, seconds(now))

    try:
        allowed, code = await state.store.at(allow)
    except WattfareError as error:
        return await _over(request, error)
    return _return(allowed, {return_urls.CODE: code})


def _return(approval: Approval, answer: dict[str, str]) -> Response:
    """Send the browser back to the app."""
    given = {return_urls.APPROVAL: approval.id, **answer}
    return see_other(return_urls.with_answer(approval.requested.return_url, given))


async def _see(request: Request, sign_in: SignIn | None, *, again: bool = False) -> _Seen:
    """The approval of this page, if it can still be answered.

    Args:
        again: if True, the same payer may answer again, by a second click.

    Raises:
        WattfareError: ``invalid_request`` if the approval does not exist or has ended.
    """
    state = state_of(request)
    approval_id: str = request.path_params["id"]
    payer_id = None if sign_in is None else sign_in.payer_id

    def look(sql: Sql, now: datetime) -> tuple[Approval, str, Estimate | None]:
        approval = approval_store.must_find(sql, approval_id)
        answers_again = (
            again
            and payer_id is not None
            and approvals.may_answer_again(approval, payer_id, seconds(now))
        )
        if not answers_again:
            approvals.check_open(approval, seconds(now))
        requested = approval.requested
        current = (
            ""
            if requested.user_id is None
            else approval_store.current_payer(sql, requested.app_id, requested.user_id)
        )
        return approval, current, estimates.of_app(sql, requested.app_id)

    approval, current, estimate = await state.store.at(look)
    app = await state.store.app_by_id(approval.requested.app_id)
    if app is None:
        raise approvals.answered_before()  # the app is deleted
    if estimate is None and isinstance(state.provider, echo.Echo):
        estimate = _ECHO
    other = current if current not in ("", payer_id) else None
    own_cap = own_funding = None
    is_connected = payer_id is not None and current == payer_id
    if is_connected and approval.requested.user_id is not None:
        connection, _ = await state.store.account(app.id, approval.requested.user_id)
        if connection is not None:
            own_cap, own_funding = connection.cap, connection.funding_id
    return _Seen(approval, app, other, is_connected, own_cap, own_funding, estimate)


async def _ask(
    request: Request,
    seen: _Seen,
    cap: str,
    *,
    funding: str,
    unlimited: bool = False,
    error: str | None = None,
    funding_error: str | None = None,
    status: int = 200,
) -> Response:
    sign_in = sign_in_of(request)
    assert sign_in is not None
    buys = None
    if seen.estimate is not None and error is None and not unlimited:
        buys = seen.estimate.answers(read_cap({CAP: cap}) or 0)
    choices = await funding_choices(request, sign_in.payer_id, f"/approve/{seen.approval.id}")
    if seen.approval.requested.kind == "grant" and not rules.allows_grants(
        None, state_of(request).terms
    ):
        choices = msgspec.structs.replace(choices, operator=False)
    context = {
        "cap": cap,
        "unlimited": unlimited,
        "error": error,
        "buys": buys,
        "choices": choices,
        "chosen": funding,
        "funding_error": funding_error,
    }
    leads_to = openrouter_origins(request) if choices.refused else []
    return _page(request, "approve.html", seen, context, status, leads_to)


def _confirm(request: Request, seen: _Seen, cap: int | None, funding: str) -> Response:
    """The second page: without JavaScript, or if another person pays now."""
    context = {
        "cap": written(cap),
        "unlimited": seen.approval.requested.kind == "connection" and cap is None,
        "funding": funding,
        "replace": _named(seen.approval, seen.other_payer),
    }
    return _page(request, "approve_confirm.html", seen, context)


def _page(
    request: Request,
    template: str,
    seen: _Seen,
    context: dict[str, Any] | None = None,
    status: int = 200,
    leads_to: Sequence[str] = (),
) -> Response:
    requested = seen.approval.requested
    terms = state_of(request).terms
    shared = {
        "id": seen.approval.id,
        "app": seen.app,
        "requested": requested,
        "seen": seen,
        "ceiling": terms.ceiling if terms.operator_pays else None,
        "next": f"/approve/{seen.approval.id}",
        "show_account": template != "approve_sign_in.html",
        "error": None,
    }
    return page(
        request,
        template,
        {**shared, **(context or {})},
        status=status,
        leads_to=[requested.origin, *leads_to],
        in_popup=True,
    )


async def _over(request: Request, error: WattfareError) -> Response:
    """The page of an approval that cannot be answered. It links back to the app."""
    if error.http_status >= 500:
        raise error
    approval = await state_of(request).store.at(
        lambda sql, now: approval_store.find(sql, request.path_params["id"])
    )
    if approval is None:
        return error_page(request, error)
    return error_page(request, error, ("Back to the app", approval.requested.origin))


def _named(approval: Approval, payer_id: str | None) -> str:
    """An opaque name of another payer, for the form that confirms the end of their connection."""
    return digest(f"{approval.id} {payer_id}")
