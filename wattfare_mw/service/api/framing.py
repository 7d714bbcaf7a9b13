"""HTTP around the routes: request ids, errors in the protocol's JSON, CORS for the browser's own
calls, bodies with a bound, and clients that go away."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar
from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import receiving, sse
from ...errors import WattfareError, invalid_request
from ...types import SANE_REQUEST_ID, decode

T = TypeVar("T")

log = logging.getLogger("wattfare_mw.service")

#: The largest body of an inference call, and of any other (bytes).
MAX_CALL_BYTES = 20 * 2**20
MAX_BODY_BYTES = 64 * 2**10
_JSON = "application/json"
#: How long a browser may remember what a preflight said, in seconds.
PREFLIGHT_SECONDS = 600


class Fields:
    """The headers of a request, which are looked up many times.

    Args:
        raw: as ASGI has them, their names in lower case.
    """

    __slots__ = ("_fields", "_repeated")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._fields = dict(raw)
        self._repeated: frozenset[bytes] = frozenset()
        if len(self._fields) < len(raw):
            names = [name for name, _ in raw]
            self._repeated = frozenset(name for name in names if names.count(name) > 1)
            self._fields = dict(reversed(raw))

    def __contains__(self, name: bytes) -> bool:
        return name in self._fields

    def first(self, name: bytes) -> str | None:
        """The value of this header; of one that came more than once, the first."""
        value = self._fields.get(name)
        return None if value is None else value.decode("latin-1")

    def single(self, name: bytes) -> str | None:
        """The value of this header.

        Raises:
            WattfareError: ``invalid_request``; it came more than once.
        """
        if name in self._repeated:
            raise invalid_request(f"The header {name.decode('latin-1')} came more than once.")
        return self.first(name)


def fields_of(scope: Scope) -> Fields:
    """The headers of the request of this scope, which :class:`Frame` has read."""
    return scope["wattfare.fields"]


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
        fields = scope["wattfare.fields"] = Fields(scope["headers"])
        request_id = fields.first(b"x-request-id")
        if request_id is None or not SANE_REQUEST_ID.fullmatch(request_id):
            request_id = fresh_id()
        scope["wattfare.request_id"] = request_id
        # Nothing but bearer tokens opens anything here, so that any page may ask; what a live
        # app's token opens is not for any page, and its route takes this back.
        scope["wattfare.any_origin"] = scope["path"] in self._cors_paths and b"origin" in fields
        answer = Answer(scope, send, self._headers)
        began = time.monotonic()
        try:
            if scope["wattfare.any_origin"] and _is_preflight(scope, fields):
                await _preflight(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except ClientDisconnect:
            pass
        except WattfareError as error:
            await answer_error(error, request_id)(scope, receive, answer)
        except Exception:
            log.exception("request failed request_id=%s", request_id)
            if not answer.status:
                failure = WattfareError("The service failed.", status=500)
                await error_response(failure)(scope, receive, answer)
        finally:
            # The path without its query, which holds a user's id.
            log.info(
                "%s %s %s %.0fms request_id=%s",
                scope["method"],
                _quoted(scope["path"])[:200],
                answer.status or "gone",
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


class Answer:
    """Where an answer goes, as ASGI's ``send``; its head with what is added to every one.

    Attributes:
        status: None before there is a head.
        rest: what comes behind the head may go there at once. (It is not kept in the scope, which
            it leads to: only the garbage collector would ever free the two.)
    """

    __slots__ = ("_added", "_scope", "rest", "status")

    def __init__(
        self, scope: Scope, send: Send, added: Callable[[Scope], list[tuple[bytes, bytes]]]
    ) -> None:
        self._scope = scope
        self._added = added
        self.rest = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._added(self._scope)]
        await self.rest(message)


#: Those of the protocol are few, and asked for all the time.
_quoted = lru_cache(maxsize=64)(quote)


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
    return error_response(invalid_request(message, error.status_code), dict(error.headers or {}))


def json_response(body: bytes) -> Response:
    """An answer in JSON."""
    return Response(body, media_type="application/json")


async def read_body(fields: Fields, receive: Receive, most: int = MAX_BODY_BYTES) -> bytes:
    """The body, if it is JSON by its type and not too large.

    Raises:
        WattfareError: ``invalid_request``, 413 or 415.
    """
    kind = fields.first(b"content-type")
    if kind not in (None, _JSON) and kind.split(";")[0].strip().lower() != _JSON:
        raise invalid_request("The body is JSON: send it as application/json.", 415)
    receiving.check_length(fields.first(b"content-length"), most)  # without reading any of it
    return await receiving.read_body(receive, most, ClientDisconnect)


async def read_json(request: Request, shape: type[T]) -> T:
    """The body as this shape.

    Raises:
        WattfareError: ``invalid_request``, with what is wrong and where.
    """
    body = await read_body(fields_of(request.scope), request.receive)
    try:
        return decode(shape, body)
    except msgspec.ValidationError as error:
        raise invalid_request(f"{error}.") from None
    except msgspec.MsgspecError:
        raise invalid_request("The body is not valid JSON.") from None


class ASGIOut:
    """Where a call's answer goes: an ASGI server.

    Args:
        send: takes the head; the rest goes to the server itself, where it is an :class:`Answer`.
        headers: those to add to the head, asked for when it is sent.
    """

    def __init__(self, send: Send, headers: Callable[[], Sequence[tuple[bytes, bytes]]]) -> None:
        self._send = send
        self._headers = headers

    async def begin(self) -> None:
        """The head of an event stream, which nothing on the way keeps or collects."""
        await self._start(_STREAM_HEADERS)

    async def write(self, block: bytes) -> None:
        """Whole events."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end(self, block: bytes) -> None:
        """The end of the stream, and its last events."""
        await self._send({"type": "http.response.body", "body": block})

    async def json(self, body: bytes) -> None:
        """A whole answer."""
        await self._start((_JSON_TYPE, (b"content-length", b"%d" % len(body))))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        fields = [*headers, *self._headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})
        self._send = getattr(self._send, "rest", self._send)


_JSON_TYPE = (b"content-type", _JSON.encode())
_STREAM_HEADERS = (
    (b"content-type", sse.CONTENT_TYPE.encode()),
    (b"x-accel-buffering", b"no"),
)


def _is_preflight(scope: Scope, fields: Fields) -> bool:
    return scope["method"] == "OPTIONS" and b"access-control-request-method" in fields


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
