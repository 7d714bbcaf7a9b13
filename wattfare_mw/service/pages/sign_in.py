"""*Sign in*: with a passkey, or with a recovery code; and the page with new recovery codes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...errors import WattfareError, invalid_request
from ...offload import in_thread
from ..api.bodies import JSON
from ..api.rate_limits import address_of
from ..api.state import state_of
from ..ledger.clock import seconds
from ..payers import passkeys, people, recovery_codes
from ..payers.passkeys import Challenge
from . import cookies
from .endpoints import (
    form_of,
    leads_to_approval,
    require_sign_in,
    sign_in_before,
    sign_in_of,
)
from .rendering import date, page, see_other
from .visits import visit_of

#: The page after a sign-in without another target.
_HOME = "/budget"
#: A path of the service with a query. Browsers cannot read it as another host.
_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_MAX_NEXT = 1000
#: The pages that a sign-in leads to.
_NEXT = ("/approve/", "/budget", "/funding")
_MAX_CREDENTIAL = 32_000
_MAX_CODE = 100


async def show(request: Request) -> Response:
    """``GET /sign-in``."""
    next_ = _next(request.query_params.get("next"))
    sign_in = sign_in_of(request)
    if sign_in is not None and sign_in.is_fresh() and "again" not in request.query_params:
        return RedirectResponse(next_, 303)
    return _page(request, next_)


async def challenge(request: Request) -> Response:
    """``POST /sign-in/challenge``: the options for the browser's authenticator."""
    state = state_of(request)
    await state.rate_limits.sign_in(address_of(request.scope))
    kind = form_of(request).get("kind")
    id_ = people.new_challenge_id()
    if kind == "create":
        payer_id, existing = await _payer_of_new_passkey(request)
        fresh = passkeys.new_challenge("create", payer_id)
        name = f"Wattfare budget, {date(time.time())}"
        options = await in_thread(
            passkeys.creation_options, fresh, state.public_url, name, existing
        )
    elif kind == "sign-in":
        fresh = passkeys.new_challenge("sign-in")
        options = await in_thread(passkeys.sign_in_options, fresh, state.public_url)
    else:
        raise invalid_request("The field `kind` must be `create` or `sign-in`.")
    name_ = _bound(request, id_)
    await state.store.at(lambda sql, now: people.keep_challenge(sql, name_, fresh, seconds(now)))
    return Response(json.dumps({"id": id_, "options": options}), media_type=JSON)


async def with_passkey(request: Request) -> Response:
    """``POST /sign-in/passkey``: the answer of the authenticator."""
    form = form_of(request)
    next_ = _next(form.get("next"))
    try:
        payer_id = await _verified_payer(request, form)
    except WattfareError as error:
        return _refused(request, next_, error)
    return await _signed_in(request, payer_id, next_)


async def with_code(request: Request) -> Response:
    """``POST /sign-in/code``: sign in with a recovery code. It works without JavaScript."""
    state, form = state_of(request), form_of(request)
    next_ = _next(form.get("next"))
    try:
        await state.rate_limits.recovery_code(address_of(request.scope))
        code = form.get("code", "")[:_MAX_CODE]
        payer_id = await state.store.at(lambda sql, now: people.use_code(sql, code, seconds(now)))
        if payer_id is None:
            raise invalid_request(
                "This recovery code is not valid, or it has been used before.", 403
            )
    except WattfareError as error:
        return _refused(request, next_, error)
    return await _signed_in(request, payer_id, next_)


async def sign_out(request: Request) -> Response:
    """``POST /sign-out``."""
    token = cookies.read(request, cookies.SIGN_IN)
    if token is not None:
        await state_of(request).store.at(lambda sql, now: people.end_sign_in(sql, token))
    response = see_other(sign_in_before(_next(form_of(request).get("next"))))
    cookies.delete_cookie(request, response, cookies.SIGN_IN)
    return response


async def new_codes(request: Request) -> Response:
    """``POST /sign-in/recovery-codes``: replace the recovery codes. Only this response shows the
    new ones."""
    sign_in = require_sign_in(request, fresh=True)
    codes = recovery_codes.new_codes()
    await state_of(request).store.at(
        lambda sql, now: people.replace_codes(sql, sign_in.payer_id, codes)
    )
    return page(request, "recovery_codes.html", {"codes": codes})


async def _payer_of_new_passkey(request: Request) -> tuple[str, list[str]]:
    """The payer of the new passkey, and the payer's other passkeys."""
    if sign_in_of(request) is None:
        return passkeys.new_payer_id(), []
    payer_id = require_sign_in(request, fresh=True).payer_id
    existing = await state_of(request).store.at(lambda sql, now: people.passkey_ids(sql, payer_id))
    return payer_id, existing


async def _verified_payer(request: Request, form: dict[str, str]) -> str:
    """The payer who signed in with a passkey."""
    state = state_of(request)
    await state.rate_limits.sign_in(address_of(request.scope))
    credential = form.get("credential", "")
    if len(credential) > _MAX_CREDENTIAL:
        raise passkeys.not_verified()
    name = _bound(request, form.get("challenge", ""))
    taken = await state.store.at(lambda sql, now: people.take_challenge(sql, name, seconds(now)))
    if taken.kind == "create":
        return await _create(request, credential, taken)
    credential_id = passkeys.credential_id_of(credential)
    before = await state.store.at(lambda sql, now: people.find_passkey(sql, credential_id))
    if before is None:
        raise invalid_request(
            "This passkey is unknown here, or its data was deleted. Create a new one.",
            403,
        )
    after = await in_thread(passkeys.verify_sign_in, credential, taken, before, state.public_url)
    await state.store.at(lambda sql, now: people.note_use(sql, before, after, seconds(now)))
    return after.payer_id


async def _create(request: Request, credential: str, taken: Challenge) -> str:
    state = state_of(request)
    made = await in_thread(passkeys.verify_creation, credential, taken, state.public_url)
    await state.store.at(lambda sql, now: people.add_passkey(sql, made, seconds(now)))
    return made.payer_id


async def _signed_in(request: Request, payer_id: str, next_: str) -> Response:
    """Start a sign-in and redirect to the next page. The cookie is new each time, so a cookie from
    before the sign-in is worthless."""
    former = cookies.read(request, cookies.SIGN_IN)
    token = await state_of(request).store.at(
        lambda sql, now: people.begin_sign_in(sql, payer_id, former, seconds(now))
    )
    response = see_other(next_)
    cookies.set_cookie(request, response, cookies.SIGN_IN, token)
    cookies.delete_cookie(request, response, cookies.VISIT)
    return response


def _bound(request: Request, challenge_id: str) -> str:
    """The name of a stored challenge. It is bound to the browser, so no other browser can answer
    it."""
    return f"{visit_of(request).cookie_for_forms()} {challenge_id}"


def _page(
    request: Request, next_: str, *, error: WattfareError | None = None, status: int = 200
) -> Response:
    context: dict[str, Any] = {
        "next": next_,
        "error": None if error is None else error.message,
        "for_approval": next_.startswith("/approve/"),
    }
    in_popup = leads_to_approval(next_)
    return page(request, "sign_in.html", context, status=status, in_popup=in_popup)


def _refused(request: Request, next_: str, error: WattfareError) -> Response:
    if error.http_status >= 500:
        raise error
    response = _page(request, next_, error=error, status=error.http_status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(round(error.retry_after))
    return response


def _next(path: str | None) -> str:
    """The page after the sign-in: a page of the service. Any other value leads home, so a link to
    the sign-in can never end on another site."""
    if path is None or len(path) > _MAX_NEXT or not _PATH.fullmatch(path):
        return _HOME
    return path if path.startswith(_NEXT) else _HOME
