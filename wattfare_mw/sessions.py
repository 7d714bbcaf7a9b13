"""The rule of the token route: who asks, which cap, what to answer. And what every route of ours
shares with it: how a user is told, and what an error answers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from . import calls
from .callables import AppFunction
from .errors import WattfareAuthError, WattfareError
from .flow import Flow
from .types import check_user_id, encode
from .web import Request, Response, json_response

logger = logging.getLogger("wattfare_mw")

ResolveUser = Callable[[Any], Any]
"""Gives the app's own id of the user who makes a request, or None; may be asynchronous."""

LetThrough = tuple[type[Exception], ...]
"""A web framework's own answers, raised (its ``HTTPException``): for the framework to give, where
the app's functions raise them."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Call a function of the app's with these; gives what it gives, awaited."""

    function: AppFunction
    args: tuple[Any, ...]


class AppError(Exception):
    """The app's own code gave what it may not give: a bug there, told in the log only."""


class Minting:
    """The token route's rule, for one app.

    Args:
        service: mints the tokens.
        resolve_user: gives the id of the user who makes a request, or None.
        request_limit: the cap to ask for in USD, or a function of the request that gives it.
        allowed_origins: other sites' origins that may ask.

    Raises:
        ValueError: an origin is none.
    """

    def __init__(
        self,
        service: calls.Service,
        resolve_user: ResolveUser,
        request_limit: Any,
        allowed_origins: Iterable[str],
    ) -> None:
        self._service = service
        self._resolve_user = AppFunction(resolve_user)
        asked = callable(request_limit)
        self._ask_limit = AppFunction(request_limit) if asked else None
        self._limit = None if asked else request_limit
        self._origins = check_origins(allowed_origins)

    def answer(self, request: Request) -> Flow[Response]:
        """Answer a request for a session token."""
        refuse_other_methods(request, "POST")
        refuse_other_sites(request, self._origins)
        user_id = yield from identify(request, self._resolve_user)
        limit = self._limit
        if self._ask_limit is not None:
            limit = yield Ask(self._ask_limit, (request,))
        try:
            asked = calls.session_request(limit)
        except WattfareError as error:
            raise AppError(f"request_limit gave no cap. {error.message}") from None
        session = yield from self._service.fetch(calls.create_session(user_id, asked))
        return json_response(200, encode(session))


def identify(request: Request, resolve_user: AppFunction) -> Flow[str]:
    """The id of the user who makes this request.

    Raises:
        WattfareAuthError: nobody is signed in.
        AppError: ``resolve_user`` gave something else than an id or None.
    """
    user_id = yield Ask(resolve_user, (request,))
    if user_id is None:
        raise NotSignedInError
    try:
        return check_user_id(user_id)
    except WattfareError as error:
        raise AppError(f"resolve_user must give a user id or None. {error.message}") from None


class NotSignedInError(WattfareAuthError):
    """Nobody is signed in to this app."""

    def __init__(self) -> None:
        super().__init__("Sign in first: this request comes from no user of this app.")


# -- what every route refuses


def refuse_other_methods(request: Request, *allowed: str) -> None:
    """405 for any method but these."""
    if request.method not in allowed:
        raise MethodNotAllowedError(allowed)


class MethodNotAllowedError(WattfareError):
    """The method is not one of this path's."""

    default_code = "invalid_request"
    default_status = 405

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"This path answers to {self.allowed} only.")


def refuse_other_sites(request: Request, allowed_origins: Collection[str]) -> None:
    """403 for a browser that acts for another site: its user's cookies come with the request,
    and a page of that site, not the user, may have sent it."""
    headers = request.headers.read
    origin = headers.get("origin")
    if origin is not None and origin in allowed_origins:
        return
    site = headers.get("sec-fetch-site")
    if site is not None:
        same = site in ("same-origin", "none")
    elif origin is not None:
        same = _same_host(origin, request.headers.get("host", ""))
    else:
        return  # no browser: it would send one or the other
    if not same:
        raise WattfareError(
            "This request comes from another site. An app that wants it lists that site's origin"
            " in allowed_origins.",
            code="invalid_request",
            status=403,
        )


_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def check_origins(origins: Iterable[str]) -> Collection[str]:
    """``allowed_origins``, each as a browser writes it; one may stand alone.

    Raises:
        ValueError: no browser writes one so.
    """
    checked = [origins] if isinstance(origins, str) else list(origins)
    for origin in checked:
        scheme, _, authority = origin.partition("://")
        match = _AUTHORITY.fullmatch(authority)
        port = _DEFAULT_PORTS.get(scheme)
        if match is None or port in (None, int(match[2] or 0)) or authority != authority.lower():
            raise ValueError(
                f"allowed_origins: {origin!r} is no origin such as 'https://app.example.com'"
            )
    return frozenset(checked)


def _same_host(origin: str, host: str) -> bool:
    # Host and port only: behind a proxy that ends TLS the app does not see the scheme.
    scheme, _, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return False
    theirs = _host_and_port(authority, default)
    return theirs is not None and theirs == _host_and_port(host, default)


def _host_and_port(authority: str, default_port: int) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(authority)
    return match and (match[1].lower(), int(match[2] or default_port))


# -- what an error answers


def answered(
    flow: Flow[Any], request_id: str | None = None, let_through: LetThrough = ()
) -> Flow[Any]:
    """``flow``, with every error made an answer: a WattfareError its JSON and status, anything
    else a 500 that tells nothing, and the log the rest. Only what is ``let_through`` still
    raises."""
    try:
        return (yield from flow)
    except WattfareError as error:
        return answer_error(error, request_id)
    except let_through:
        raise
    except Exception:
        logger.exception("A request could not be answered. request_id=%s", request_id)
        return error_response(
            WattfareError("Something went wrong here. It has been logged.", status=500)
        )


def answer_error(error: WattfareError, request_id: str | None = None) -> Response:
    """The protocol's answer to an error, and what the log must know of it: for an adapter, too,
    whose app's own views let one through."""
    if isinstance(error, WattfareAuthError) and not isinstance(error, NotSignedInError):
        logger.error(
            "Wattfare refused this app's secret key (%s): no user of this app can pay until"
            " WATTFARE_SECRET_KEY is put right. request_id=%s",
            error.message,
            request_id,
        )
    elif error.http_status >= 500:
        logger.warning(
            "%s: %s request_id=%s cause=%r",
            error.code,
            error.message,
            request_id,
            error.__cause__,
        )
    return error_response(error)


def error_response(error: WattfareError) -> Response:
    """The protocol's answer to an error."""
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allowed
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.http_status == 409:  # the call has been made: openai's clients would try it again
        headers["x-should-retry"] = "false"
    return json_response(error.http_status, error.to_json(), headers)


def cors_headers(request: Request, allowed_origins: Collection[str]) -> Mapping[str, str]:
    """What lets a page of an allowed origin read the answer."""
    if not allowed_origins:
        return {}
    origin = request.headers.read.get("origin")
    if origin is None or origin not in allowed_origins:
        return {"vary": "Origin"}
    return {
        "vary": "Origin",
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "retry-after, x-request-id, x-should-retry,"
        " x-wattfare-max-tokens",
    }
