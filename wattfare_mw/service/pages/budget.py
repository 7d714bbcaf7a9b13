"""*My budget*: what each app spends of a payer's money, and forms to change or stop it."""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection as Sql
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ... import money
from ...errors import WattfareError, invalid_request
from .. import errors
from ..api.state import ServiceState, state_of
from ..ledger import payer_actions, rules, spending
from ..ledger.clock import seconds
from ..ledger.spending import PayerCall, PayerConnection, PayerGrant, Position
from ..records import Connection, Terms
from . import caps, cookies
from .endpoints import form_of, not_found, require_sign_in, sign_in_url
from .funding import FIELD, funding_choices, openrouter_origins
from .rendering import HEADERS, page, see_other
from .visits import visit_of

#: The maximum number of rows of a page.
CONNECTIONS_SHOWN = 8
ENDED_SHOWN = 3
ENDED_PER_PAGE = 25
CALLS_SHOWN = 5
CALLS_PER_PAGE = 25
GRANTS_SHOWN = 4
FUNDING_SHOWN = 5
#: The columns of an export.
COLUMNS = (
    *("time", "app", "app_user", "model", "prompt_tokens", "completion_tokens"),
    *("cost_usd", "ended", "call"),
)
_PAGE_NUMBER = re.compile("[1-9][0-9]{0,5}", re.ASCII)
_POSITION = re.compile(r"([0-9]{1,15})\.([0-9]{1,18})", re.ASCII)
#: Finds each place where a spreadsheet can read a formula: at the start of a text, or after a
#: separator. In some languages, spreadsheets separate cells by semicolons. The signs can be
#: full-width.
_FORMULA = re.compile("(^|[;\t])(\\s*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")
#: The notices that a redirect can show at the top of the page.
NOTICES = {
    "stopped": "Stopped. The app cannot spend any more, and its running calls were stopped.",
    "changed": "The cap was changed.",
    "paid": "From now on, your choice pays. Running calls are paid as before.",
}


class Shown(msgspec.Struct, frozen=True):
    """A connection with computed values for the page. Amounts are nano-dollars."""

    connection: PayerConnection
    limit: int | None
    pays: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    @property
    def left(self) -> int:
        """The rest of the limit."""
        assert self.limit is not None
        return max(self.limit - self.connection.billed, 0)

    @property
    def shown(self) -> int:
        """The length of the bar."""
        assert self.limit is not None
        return min(self.connection.billed, self.limit)

    @property
    def is_limited_by_service(self) -> bool:
        """True if the operator's ceiling applies, not the payer's own cap."""
        return self.limit != self.connection.cap


class _Overview(NamedTuple):
    now: datetime
    live: list[PayerConnection]
    ended: list[PayerConnection]
    grants: list[PayerGrant]
    calls: list[PayerCall]


async def overview(request: Request) -> Response:
    """``GET /budget``: an overview."""
    state = state_of(request)
    payer_id = require_sign_in(request).payer_id
    number = _page_number(request)

    def look(sql: Sql, now: datetime) -> _Overview:
        return _Overview(
            now,
            spending.connections(
                sql,
                payer_id,
                now,
                ended=False,
                limit=CONNECTIONS_SHOWN + 1,
                offset=(number - 1) * CONNECTIONS_SHOWN,
            ),
            spending.connections(sql, payer_id, now, ended=True, limit=ENDED_SHOWN + 1),
            spending.grants(sql, payer_id, now, GRANTS_SHOWN),
            spending.calls(sql, payer_id, CALLS_SHOWN)[0],
        )

    now, live, ended, grants, calls = await state.store.at(look)
    newer, older = _pages(live, number, CONNECTIONS_SHOWN, "/budget")
    funding = await state.funding.of_payer(payer_id)
    reset = rules.month_after(seconds(now))
    context = {
        "notice": NOTICES.get(request.query_params.get("done", "")),
        "month": f"{now:%B %Y}",
        "resets": f"{reset.day} {reset:%B %Y}",
        "live": [_shown(one, state.terms) for one in live[:CONNECTIONS_SHOWN]],
        "newer": newer,
        "older": older,
        "grants": grants,
        "ended": ended[:ENDED_SHOWN],
        "more_ended": len(ended) > ENDED_SHOWN,
        "calls": calls,
        "mine": funding[:FUNDING_SHOWN],
        "pays": bool(funding or state.funding.offers),
        "operator": state.funding.operator_pays,
    }
    return page(request, "budget.html", context)


async def ended(request: Request) -> Response:
    """``GET /budget/ended``: all connections that have ended."""
    payer_id = require_sign_in(request).payer_id
    number = _page_number(request)
    offset = (number - 1) * ENDED_PER_PAGE
    found = await state_of(request).store.at(
        lambda sql, now: spending.connections(
            sql, payer_id, now, ended=True, limit=ENDED_PER_PAGE + 1, offset=offset
        )
    )
    newer, older = _pages(found, number, ENDED_PER_PAGE, "/budget/ended")
    context = {"ended": found[:ENDED_PER_PAGE], "newer": newer, "older": older}
    return page(request, "ended.html", context)


async def calls(request: Request) -> Response:
    """``GET /budget/calls``: the calls, latest first. ``?connection=`` with a key shows only those
    of one connection."""
    state = state_of(request)
    payer_id = require_sign_in(request).payer_id
    before = _position(request.query_params.get("before"))
    key = request.query_params.get("connection")
    connection = None if key is None else await _connection(state, payer_id, key)
    account = None if connection is None else (connection.app_id, connection.user_id)
    found, next_ = await state.store.at(
        lambda sql, _: spending.calls(sql, payer_id, CALLS_PER_PAGE, before=before, account=account)
    )
    of_connection = {} if key is None else {"connection": key}
    path = "/budget/calls"
    older = newer = None
    if next_ is not None:
        older = f"{path}?{urlencode({**of_connection, 'before': f'{next_[0]}.{next_[1]}'})}"
    if before is not None:
        newer = f"{path}?{urlencode(of_connection)}" if of_connection else path
    context = {"connection": connection, "calls": found, "newer": newer, "older": older}
    return page(request, "calls.html", context)


async def change(request: Request) -> Response:
    """``/budget/connections/{key}``: change the cap and the funding. To raise the cap or change the
    funding, the payer must have signed in recently."""
    state = state_of(request)
    sign_in = require_sign_in(request)
    payer_id = sign_in.payer_id
    connection = await _connection(state, payer_id, request.path_params["key"], live=True)
    if request.method != "POST":
        return await _change_page(request, connection, caps.written(connection.cap))
    form = form_of(request)

    async def ask_again(status: int = 400, **why: Any) -> Response:
        written, unlimited = form.get(caps.CAP, ""), caps.UNLIMITED in form
        return await _change_page(
            request, connection, written, unlimited=unlimited, status=status, **why
        )

    try:
        cap = caps.read_cap(form)
    except WattfareError as error:
        return await ask_again(error=error.message)
    funding_id: str | UnsetType | None = UNSET
    given = form.get(FIELD, "")[:64]
    if given and given != (connection.funding_id or "operator"):
        try:
            funding_id = await state.funding.chosen(payer_id, given)
        except WattfareError as error:
            if error.code != "invalid_request":
                raise
            return await ask_again(funding_error=error.message)
    done = await state.store.at(
        lambda sql, now: payer_actions.change_connection(
            sql,
            payer_id,
            connection.app_id,
            connection.user_id,
            cap,
            now,
            funding_id=funding_id,
            is_fresh=sign_in.is_fresh(),
        )
    )
    if done == "ended":
        not_found("This connection has ended, so it cannot be changed.")
    if done == "needs_sign_in":
        return await ask_again(403, needs_sign_in=True)
    return see_other(f"/budget?done={'changed' if funding_id is UNSET else 'paid'}")


async def stop(request: Request) -> Response:
    """``POST /budget/connections/{key}/stop``: end a connection and stop its calls."""
    state = state_of(request)
    payer_id = require_sign_in(request).payer_id
    one = await _connection(state, payer_id, request.path_params["key"])
    account = (one.app_id, one.user_id)
    stopped = await state.store.revoke(*account, payer_id=payer_id)
    if stopped:
        # Other processes stop their calls when they renew their leases.
        state.runner.cut_off(errors.revoked(), lambda call: (call.app_id, call.user_id) == account)
    return see_other("/budget?done=stopped")


async def stop_grant(request: Request) -> Response:
    """``POST /budget/grants/{key}/stop``: end a one-time grant and stop its calls."""
    state = state_of(request)
    payer_id = require_sign_in(request).payer_id
    key: str = request.path_params["key"]
    found = await state.store.at(lambda sql, now: payer_actions.stop_grant(sql, payer_id, key, now))
    if not found:
        not_found("This grant does not exist.")
    state.runner.cut_off(errors.revoked(), lambda call: call.grant_hash == key)
    return see_other("/budget?done=stopped")


async def export(request: Request) -> Response:
    """``GET /budget/calls.csv``: all calls, oldest first."""
    state = state_of(request)
    payer_id = require_sign_in(request).payer_id

    async def rows_after(position: Position) -> list[PayerCall]:
        return await state.store.at(lambda sql, _: spending.export(sql, payer_id, position))

    async def pages() -> AsyncGenerator[bytes]:
        yield _csv([COLUMNS])
        position = (0, 0)
        while found := await rows_after(position):
            yield _csv(map(_cells, found))
            position = (found[-1].settled_at, found[-1].id)

    headers = {
        **HEADERS,
        "content-disposition": 'attachment; filename="wattfare-calls.csv"',
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    }
    return StreamingResponse(pages(), headers=headers, media_type="text/csv; charset=utf-8")


async def delete(request: Request) -> Response:
    """``/budget/delete``: delete all data of a payer, after a confirmation."""
    state = state_of(request)
    sign_in = require_sign_in(request)
    if not sign_in.is_fresh():
        status = 403 if request.method == "POST" else 200
        return _delete_page(request, needs_sign_in=True, status=status)
    if request.method != "POST":
        return _delete_page(request)
    if "sure" not in form_of(request):
        return _delete_page(request, error="Tick the box to delete your data.", status=400)
    stopped = await state.store.at(
        lambda sql, now: payer_actions.delete_data(sql, sign_in.payer_id, now)
    )
    state.runner.cut_off(
        errors.revoked(),
        lambda call: (
            (call.app_id, call.user_id) in stopped.accounts or call.grant_hash in stopped.grants
        ),
    )
    state.funding.forget(stopped.funding)
    visit_of(request).sign_in = None
    response = page(request, "deleted.html")
    cookies.delete_cookie(request, response, cookies.SIGN_IN)
    return response


async def _change_page(
    request: Request,
    connection: PayerConnection,
    cap: str,
    *,
    unlimited: bool | None = None,
    error: str | None = None,
    funding_error: str | None = None,
    needs_sign_in: bool = False,
    status: int = 200,
) -> Response:
    terms = state_of(request).terms
    payer_id = require_sign_in(request).payer_id
    choices = await funding_choices(
        request, payer_id, f"/budget/connections/{request.path_params['key']}"
    )
    context = {
        "one": connection,
        "cap": cap,
        "unlimited": connection.cap is None if unlimited is None else unlimited,
        "choices": choices,
        "chosen": form_of(request).get(FIELD) or connection.funding_id or "operator",
        "error": error,
        "funding_error": funding_error,
        "needs_sign_in": needs_sign_in,
        "sign_in_url": sign_in_url(request, again=True),
        "ceiling": _ceiling(connection, terms),
    }
    leads_to = openrouter_origins(request) if choices.refused else []
    return page(request, "change.html", context, status=status, leads_to=leads_to)


def _delete_page(
    request: Request,
    *,
    error: str | None = None,
    needs_sign_in: bool = False,
    status: int = 200,
) -> Response:
    context = {
        "error": error,
        "needs_sign_in": needs_sign_in,
        "sign_in_url": sign_in_url(request, again=True),
    }
    return page(request, "delete.html", context, status=status)


async def _connection(
    state: ServiceState, payer_id: str, key: str, *, live: bool = False
) -> PayerConnection:
    """The payer's connection with this key."""
    found = await state.store.at(lambda sql, now: spending.find_connection(sql, payer_id, key, now))
    if found is None or (live and found.ended_at is not None):
        not_found("This connection does not exist.")
    return found


def _ceiling(connection: PayerConnection, terms: Terms) -> int | None:
    """The operator's monthly ceiling for this connection; None for no ceiling."""
    return terms.ceiling if rules.operator_pays(connection.funding_id, terms) else None


def _shown(connection: PayerConnection, terms: Terms) -> Shown:
    in_force = Connection(cap=connection.cap, funding_id=connection.funding_id)
    limit = rules.cap_in_force(in_force, terms)
    return Shown(connection, limit, connection.funding or "this service")


def _pages(
    rows: Sequence[object], number: int, size: int, path: str
) -> tuple[str | None, str | None]:
    """The links to the previous and the next page. ``rows`` has one row more than the page shows,
    if there is a next page."""
    newer = None if number == 1 else path if number == 2 else f"{path}?page={number - 1}"
    return newer, f"{path}?page={number + 1}" if len(rows) > size else None


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "1")
    if not _PAGE_NUMBER.fullmatch(text):
        raise invalid_request("Page numbers start at 1.")
    return int(text)


def _position(text: str | None) -> Position | None:
    """The start of a page of calls, from its link."""
    if text is None:
        return None
    found = _POSITION.fullmatch(text)
    if found is None:
        raise invalid_request("This link to older calls is invalid.")
    return int(found[1]), int(found[2])


def _cells(call: PayerCall) -> list[object]:
    moment = datetime.fromtimestamp(call.settled_at, UTC)
    return [
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        _text(call.app_name),
        _text(call.user_id or ""),
        _text(call.model),
        call.prompt_tokens,
        call.completion_tokens,
        _signed_usd(call.billed),
        "correction" if call.is_correction else call.ended,
        call.reservation_id,
    ]


def _text(value: str) -> str:
    """Escape a text so that spreadsheets do not read it as a formula."""
    return _FORMULA.sub(r"\1'\2", value)


def _signed_usd(nanos: int) -> str:
    return f"{'-' if nanos < 0 else ''}{money.usd(abs(nanos)):f}"


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
