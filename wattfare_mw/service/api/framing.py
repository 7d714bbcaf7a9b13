"""The outermost middleware. It adds a request id, cache headers and CORS headers to each response,
converts errors to the protocol's JSON, and writes a log line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import money, unserved
from ...error_responses import error_headers, log_server_error
from ...errors import WattfareAuthError, WattfareError, WattfareRateLimitError, invalid_request
from ...headers import Headers
from ...logs import Field, LogEvent, get_logger, log_event
from ...types import API_PREFIX, SANE_REQUEST_ID
from ..errors import lead_to_budget
from ..ids import new_id
from ..records import CallReport
from .bodies import JSON
from .rate_limits import address_of
from .state import state_in

log = get_logger("wattfare_mw.service", show_messages=False)

#: How long a browser may cache the response to a preflight, in seconds.
PREFLIGHT_SECONDS = 600


class Frame:
    """The outermost middleware.

    Args:
        is_cors_path: returns True for a path that a browser calls from an app's page.
    """

    def __init__(self, app: ASGIApp, *, is_cors_path: Callable[[str], bool]) -> None:
        self._app = app
        self._is_cors_path = is_cors_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["wattfare.headers"] = Headers.of_scope(scope["headers"])
        request_id = headers.first("x-request-id")
        if request_id is None or not SANE_REQUEST_ID.fullmatch(request_id):
            request_id = new_id()
        scope["wattfare.request_id"] = request_id
        # Cookies give no access to these paths, so pages of any origin may call them. A route that
        # gets a live app's credential calls `allow_origin`, because only the app's own pages may
        # use it.
        is_cors_path = scope["wattfare.cors"] = self._is_cors_path(scope["path"])
        scope["wattfare.allowed_origin"] = (
            "*" if is_cors_path and "origin" in headers.common else None
        )
        sender = ResponseSender(scope, send)
        began = time.monotonic()
        try:
            if scope["wattfare.allowed_origin"] and _is_preflight(scope, headers):
                await _preflight(scope, receive, sender)
            elif "\0" in scope["path"]:  # PostgreSQL cannot store such text
                await _error_response(_no_such_path(scope["path"]))(scope, receive, sender)
            else:
                await self._app(scope, receive, sender)
        except ClientDisconnect:
            pass
        except WattfareError as failure:
            error = lead_to_budget(_counted(failure, scope), state_in(scope).public_url)
            if (call := _call_of(scope)) is not None:
                call.code = error.code
            log_server_error(log, error, request_id)
            await _error_response(error)(scope, receive, sender)
        except Exception:
            log.exception("request failed request_id=%s", request_id)
            if not sender.status:
                failure = WattfareError("The service failed.", status=500)
                await _error_response(failure)(scope, receive, sender)
        finally:
            self._report(scope, sender.status, time.monotonic() - began)

    def _report(self, scope: Scope, status: int | None, seconds: float) -> None:
        """Log this request."""
        call = _call_of(scope)
        if log.isEnabledFor(logging.INFO):
            method, ms = scope["method"], round(seconds * 1000)
            path = _quoted(scope["path"])[:200]  # without the query, which may have a user's id
            request_id = scope["wattfare.request_id"]
            in_text: dict[str, Field] = {
                "method": method,
                "path": path,
                "status": status,
                "ms": ms,
                "request_id": request_id,
            }
            fields: dict[str, Field] = {}
            if call is not None:
                _describe(call, fields)
            text = f"{method} {path} {status or 'gone'} {ms}ms request_id={request_id}"
            log_event(log, LogEvent(text, fields, in_text))
        if call is not None:
            state = state_in(scope)
            if state.on_call is not None:
                state.on_call(call, state)


def _call_of(scope: Scope) -> CallReport | None:
    return scope.get("wattfare.call")


def _describe(call: CallReport, fields: dict[str, Field]) -> None:
    """Add the fields of an inference call to the log line."""
    fields["app"] = call.app_id
    if call.user_id is not None:
        fields["user"] = call.user_id
    elif call.grant_hash is not None:
        # A part of the hash is enough to find the grant's rows in `wattfare ledger export`, and
        # gives no access.
        fields["grant"] = call.grant_hash[:16]
    if call.model is not None:
        fields["model"] = call.model
    if call.ended is not None:
        fields["prompt_tokens"] = call.prompt_tokens
        fields["completion_tokens"] = call.completion_tokens
        if call.cost is not None:
            fields["cost_usd"] = money.usd(call.cost)
        fields["ended"] = call.ended
    if call.code is not None:
        fields["code"] = call.code


def _counted(error: WattfareError, scope: Scope) -> WattfareError:
    """Count a failed authentication. Returns the error to send, which is a rate limit after too
    many failures."""
    if isinstance(error, WattfareAuthError):
        try:
            state_in(scope).rate_limits.failed_authentication(address_of(scope))
        except WattfareRateLimitError as refusal:
            return refusal
    return error


def allow_origin(scope: Scope, origin: str | None) -> None:
    """Allow only pages of this origin to read the response. None allows no page of another
    origin."""
    scope["wattfare.allowed_origin"] = origin


def allow_caching(scope: Scope) -> None:
    """Let the response of this request set its own ``Cache-Control``."""
    scope["wattfare.cacheable"] = True


class ResponseSender:
    """An ASGI ``send`` that adds the headers of every response.

    Attributes:
        status: the status of the response. None until the response begins.
        server_send: the server's own ``send``, for the body. It is not stored in the scope, because
            this would be a reference cycle, which only the garbage collector could free.
    """

    __slots__ = ("_scope", "server_send", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self.server_send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"] = list(message["headers"])
            _add_headers(self._scope, headers)
        await self.server_send(message)


def _add_headers(scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
    """Add the headers of every response."""
    headers.append((b"x-request-id", scope["wattfare.request_id"].encode()))
    if "wattfare.cacheable" not in scope:
        headers.append((b"cache-control", b"no-store"))
    if scope["wattfare.cors"]:
        headers.append((b"vary", b"Origin"))
    if (origin := scope["wattfare.allowed_origin"]) is not None:
        headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
        headers.append((b"access-control-expose-headers", b"Retry-After, X-Request-Id"))


# The protocol has few paths, so a small cache covers most log lines.
_quoted = lru_cache(maxsize=64)(quote)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for requests that its router refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error_response(_no_such_path(request.url.path))
    message = error.detail
    if error.status_code == 405:
        message = "This path does not support this method."
    refusal = invalid_request(message, error.status_code)
    return _error_response(refusal, dict(error.headers or {}))


def _no_such_path(path: str) -> WattfareError:
    if path.startswith(f"{API_PREFIX}/"):
        found = unserved.refusal(API_PREFIX, path.removeprefix(f"{API_PREFIX}/"))
        return found or invalid_request("There is no such path here.", 404)
    tail = path.lstrip("/").removeprefix("api/").removeprefix("v1/")
    if unserved.is_of_openai(tail):
        message = (
            f"There is no such path here. The base URL of a client must end with {API_PREFIX}."
        )
        return invalid_request(message, 404)
    return invalid_request("There is no such path here.", 404)


def _error_response(error: WattfareError, headers: dict[str, str] | None = None) -> Response:
    headers = {**(headers or {}), **error_headers(error)}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error.to_json(), error.http_status, headers, JSON)


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    response = Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": "Authorization, Content-Type, X-Request-Id",
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        },
    )
    await response(scope, receive, send)
