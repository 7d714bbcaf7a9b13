"""The rules of all pages: rate limits, the public host, checked forms, and errors in HTML."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import quote, unquote, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ...error_responses import error_headers, log_server_error
from ...errors import WattfareError, invalid_request
from ..api.bodies import headers_of
from ..api.framing import log
from ..api.rate_limits import address_of
from ..api.state import state_of
from ..public_url import is_local
from . import forms
from .rendering import page, see_other
from .signed_in import SignIn
from .visits import begin_visit, visit_of

_QUALITY = re.compile(r"[01](?:\.[0-9]{0,3})?", re.ASCII)
Handler = Callable[[Request], Awaitable[Response]]


class SignInNeeded(Exception):  # noqa: N818 - a redirect, not an error
    """The page needs a signed-in payer, or one who signed in recently."""

    def __init__(self, *, again: bool, next_: str | None = None) -> None:
        super().__init__()
        self.again = again
        self.next = next_


def page_route(path: str, handler: Handler, methods: Sequence[str] = ("GET",)) -> Route:
    """Create the route of a page. A POST reaches the handler only if its form comes from our own
    page. ``form_of(request)`` returns its fields."""

    async def endpoint(request: Request) -> Response:
        try:
            return await _respond(request, handler)
        except ClientDisconnect:
            raise
        except SignInNeeded as needed:
            return _sign_in(request, needed)
        except WattfareError as error:
            log_server_error(log, error, request.scope["wattfare.request_id"])
            return error_page(request, error)
        except HTTPException:
            raise
        except Exception:
            log.exception("page failed request_id=%s", request.scope["wattfare.request_id"])
            return error_page(request, WattfareError("The service failed.", status=500))

    return Route(path, endpoint, methods=list(methods), name=path)


def form_of(request: Request) -> dict[str, str]:
    """The fields of the form that this POST sent."""
    return visit_of(request).form


def sign_in_of(request: Request) -> SignIn | None:
    """The sign-in of this request, or None."""
    return visit_of(request).sign_in


def require_sign_in(request: Request, *, fresh: bool = False, next_: str | None = None) -> SignIn:
    """The signed-in payer. Without one, a GET redirects to the sign-in page, which returns here,
    and a POST is refused.

    Args:
        fresh: if True, the payer must have used a passkey or a code in the last ten minutes.
        next_: the page after the sign-in, if a POST is refused.
    """
    sign_in = sign_in_of(request)
    if sign_in is None:
        raise SignInNeeded(again=False, next_=next_)
    if fresh and not sign_in.is_fresh():
        raise SignInNeeded(again=True, next_=next_)
    return sign_in


def sign_in_url(request: Request, *, again: bool = False) -> str:
    """The sign-in page, which returns to the page of this request.

    Args:
        again: if True, a passkey is needed even if the browser is signed in.
    """
    return sign_in_before(_path_of(request), again=again)


def sign_in_before(next_: str | None, *, again: bool = False) -> str:
    """The sign-in page, which leads to this page. It leads home if ``next_`` is None."""
    query = {} if next_ is None else {"next": next_}
    if again:
        query["again"] = "1"
    return f"/sign-in?{urlencode(query)}" if query else "/sign-in"


def leads_to_approval(path: str) -> bool:
    """True for a page that leads to an approval and may be in an app's popup. The path of the
    approval may be in a query, or in a query inside of a query."""
    return "/approve/" in unquote(unquote(path))


#: The titles of errors for people. Other errors use HTTP's phrases.
_TITLES = {
    400: "That did not work",
    403: "Not allowed",
    404: "Page not found",
    409: "No longer possible",
    429: "Too many attempts",
    503: "Not available at the moment",
}


def error_page(
    request: Request, error: WattfareError, link: tuple[str, str] = ("My budget", "/budget")
) -> Response:
    """The page that shows an error.

    Args:
        link: the text and the target of the link to the next page.
    """
    status = error.http_status
    context = {
        "link": link,
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "message": error.message,
        "request_id": request.scope["wattfare.request_id"],
    }
    in_popup = leads_to_approval(link[1])
    response = page(request, "error.html", context, status=status, in_popup=in_popup)
    response.headers.update(error_headers(error))
    return response


def asks_for_a_page(request: Request) -> bool:
    """True if the client prefers HTML to JSON, as a person's browser does."""
    accepted = headers_of(request.scope).get("accept") or ""
    qualities = {"text/html": 0.0, "application/json": 0.0}
    for part in accepted.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        if kind in qualities:
            qualities[kind] = _quality(parameters)
    html, json = qualities.values()
    return request.method in ("GET", "HEAD") and html > 0 and html >= json


def _quality(parameters: Sequence[str]) -> float:
    """The client's preference for a media type, from 0 to 1."""
    for name, _, value in (each.partition("=") for each in parameters):
        if name.strip() == "q":
            return float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return 1.0


def http_error_page(request: Request, error: HTTPException) -> Response:
    """The page for requests that Starlette's router refuses."""
    if error.status_code == 404:
        message = "This page does not exist."
    elif error.status_code == 405:
        message = "This page does not accept this kind of request."
    else:
        message = error.detail
    response = error_page(request, invalid_request(message, error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _respond(request: Request, handler: Handler) -> Response:
    if (elsewhere := _at_public_host(request)) is not None:
        return elsewhere
    await state_of(request).rate_limits.browser(address_of(request.scope))
    is_form = request.method == "POST"
    if is_form:
        forms.check_sender(request)
    visit = await begin_visit(request)
    if is_form:
        form = await forms.read_form(request)
        forms.check_token(form, visit.cookie)
        visit.form = form
    return await handler(request)


def _at_public_host(request: Request) -> Response | None:
    """A redirect to the same page on localhost, because passkeys need a host name. It is only for a
    browser that opened the page by an IP address of this machine. If the public URL is not on
    localhost, there is no redirect: a proxy may request 127.0.0.1 itself, so a redirect could
    loop."""
    public_url = state_of(request).public_url
    if request.method not in ("GET", "HEAD") or not is_local(urlsplit(public_url).hostname or ""):
        return None
    host = headers_of(request.scope).get("host") or ""
    try:
        by_address = ip_address(urlsplit(f"//{host}").hostname or "").is_loopback
    except ValueError:
        return None
    if not by_address:
        return None
    return RedirectResponse(public_url + _path_of(request), 307)


def _path_of(request: Request) -> str:
    query: str = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


def _sign_in(request: Request, needed: SignInNeeded) -> Response:
    if request.method != "POST":
        return see_other(sign_in_url(request, again=needed.again))
    message = "Sign in first."
    if needed.again:
        message = "Sign in again first: your last sign-in was more than ten minutes ago."
    url = sign_in_before(needed.next, again=needed.again)
    return error_page(request, invalid_request(message, 403), ("Sign in", url))


def not_found(message: str) -> NoReturn:
    """Answer with a 404."""
    raise invalid_request(message, 404)
