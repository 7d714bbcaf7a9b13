"""HTTP around the routes: request ids, errors in the protocol's JSON, CORS for the browser's own
calls, bodies with a bound, and clients that go away."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import receiving, sse
from ..errors import WattfareError
from ..types import SANE_REQUEST_ID, decode
from .refusals import invalid

T = TypeVar("T")

log = logging.getLogger("wattfare_mw.service")

#: The largest body of an inference call, and of any other (bytes).
MAX_CALL_BYTES = 20 * 2**20
MAX_BODY_BYTES = 64 * 2**10
#: How long a browser may remember what a preflight said, in seconds.
PREFLIGHT_SECONDS = 600


def fresh_id() -> str:
    """An id that nothing else has, and that comes after those before it: what is written next to
    each other stands next to each other in an index. It is no secret: asking the system for
    randomness takes longer than all the rest of it."""
    return f"{time.time_ns():016x}{random.getrandbits(64):016x}"


class Frame:
    """The outermost middleware: what holds for every answer.

    Args:
        cors_paths: those that a browser calls from an app's page.
    """

    def __init__(self, app: ASGIApp, *, cors_paths: frozenset[str]) -> None:
        self._app = app
        self._cors_paths = cors_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not SANE_REQUEST_ID.fullmatch(request_id):
            request_id = fresh_id()
        scope["wattfare.request_id"] = request_id
        # Nothing but bearer tokens opens anything here, so that any page may ask; what a live
        # app's token opens is not for any page, and its route takes this back.
        scope["wattfare.any_origin"] = scope["path"] in self._cors_paths and "origin" in headers
        status = 0
        began = time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(scope)]
            await send(message)

        try:
            if scope["wattfare.any_origin"] and _is_preflight(scope, headers):
                await _preflight(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except ClientDisconnect:
            pass
        except WattfareError as error:
            await answer_error(error, request_id)(scope, receive, answer)
        except Exception:
            log.exception("request failed request_id=%s", request_id)
            if not status:
                failure = WattfareError("The service failed.", status=500)
                await error_response(failure)(scope, receive, answer)
        finally:
            # The path without its query, which holds a user's id.
            log.info(
                "%s %s %s %.0fms request_id=%s",
                scope["method"],
                quote(scope["path"])[:200],
                status or "gone",
                (time.monotonic() - began) * 1000,
                request_id,
            )

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What is added to every answer."""
        headers = [
            (b"x-request-id", scope["wattfare.request_id"].encode()),
            (b"cache-control", b"no-store"),
        ]
        if scope["path"] in self._cors_paths:
            headers.append((b"vary", b"Origin"))
        if scope["wattfare.any_origin"]:
            headers.append((b"access-control-allow-origin", b"*"))
            headers.append((b"access-control-expose-headers", b"Retry-After, X-Request-Id"))
        return headers


def error_response(error: WattfareError, headers: dict[str, str] | None = None) -> Response:
    """The protocol's JSON for an error."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.http_status == 409:
        headers["x-should-retry"] = "false"  # some clients would, by themselves
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error.to_json(), error.http_status, headers, "application/json")


def answer_error(error: WattfareError, request_id: str) -> Response:
    """The answer to an error, and what the log must know of it."""
    if error.http_status >= 500:
        log.warning(
            "%s: %s request_id=%s cause=%r",
            error.code,
            error.message,
            request_id,
            error.__cause__,
        )
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for what its router refuses."""
    assert isinstance(error, HTTPException)
    message = {
        404: "There is no such path here.",
        405: "This path does not take this method.",
    }.get(error.status_code, error.detail)
    return error_response(invalid(message, error.status_code), dict(error.headers or {}))


def json_response(body: bytes) -> Response:
    """An answer in JSON."""
    return Response(body, media_type="application/json")


async def read_body(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body, if it is JSON by its type and not too large.

    Raises:
        WattfareError: ``invalid_request``, 413 or 415.
    """
    kind = request.headers.get("content-type", "application/json")
    if kind.split(";")[0].strip().lower() != "application/json":
        raise invalid("The body is JSON: send it as application/json.", 415)
    receiving.check_length(request.headers.get("content-length"), most)  # without reading any of it
    return await receiving.read_body(request.receive, most, ClientDisconnect)


async def read_json(request: Request, shape: type[T]) -> T:
    """The body as this shape.

    Raises:
        WattfareError: ``invalid_request``, with what is wrong and where.
    """
    body = await read_body(request)
    try:
        return decode(shape, body)
    except msgspec.ValidationError as error:
        raise invalid(f"{error}.") from None
    except msgspec.MsgspecError:
        raise invalid("The body is not valid JSON.") from None


class ASGIOut:
    """Where a call's answer goes: an ASGI server.

    Args:
        headers: those to add to the head, asked for when it is sent.
    """

    def __init__(self, send: Send, headers: Callable[[], dict[bytes, bytes]] = dict) -> None:
        self._send = send
        self._headers = headers

    async def begin(self) -> None:
        """The head of an event stream, which nothing on the way keeps or collects."""
        await self._start(
            (b"content-type", sse.CONTENT_TYPE.encode()), (b"x-accel-buffering", b"no")
        )

    async def write(self, block: bytes) -> None:
        """Whole events."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end(self) -> None:
        """The end of the stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def json(self, body: bytes) -> None:
        """A whole answer."""
        length = str(len(body)).encode()
        await self._start((b"content-type", b"application/json"), (b"content-length", length))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, *headers: tuple[bytes, bytes]) -> None:
        fields = [*headers, *self._headers().items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})


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
