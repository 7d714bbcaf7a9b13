"""Request bodies within a size limit, and responses in JSON."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from ... import receiving
from ...errors import invalid_request
from ...headers import Headers
from ...types import decode

T = TypeVar("T")

#: The maximum size of an inference call's body, and of any other body, in bytes.
MAX_CALL_BYTES = 20 * 2**20
MAX_BODY_BYTES = 64 * 2**10
JSON = "application/json"


def headers_of(scope: Scope) -> Headers:
    """The headers of the request with this scope. :class:`.framing.Frame` has read them."""
    return scope["wattfare.headers"]


def check_body(headers: Headers, most: int) -> bool:
    """Check the headers of a body before the body is read. Returns True if the body is known to
    have at most :data:`.offload.LARGE_BODY` bytes.

    Raises:
        WattfareError: ``invalid_request``, 413 or 415.
    """
    _check_type(headers)
    return receiving.check_length(headers.first("content-length"), most)


async def read_json(request: Request, shape: type[T], *, empty: T | None = None) -> T:
    """Read the body, and decode it as this shape.

    Args:
        empty: the value for an empty body. If None, an empty body is refused. With HTTP/2 or
            chunks, the headers do not show whether the body is empty.

    Raises:
        WattfareError: ``invalid_request``; the message names the field and the problem.
    """
    headers = headers_of(request.scope)
    receiving.check_length(headers.first("content-length"), MAX_BODY_BYTES)
    body = await receiving.read_body(request.receive, MAX_BODY_BYTES, ClientDisconnect)
    if not body and empty is not None:
        return empty  # with any media type, because some clients always send one
    _check_type(headers)
    try:
        return decode(shape, body)
    except msgspec.ValidationError as error:
        raise invalid_request(f"{error}.") from None
    except msgspec.MsgspecError:
        raise invalid_request("The body is not valid JSON.") from None


def _check_type(headers: Headers) -> None:
    kind = headers.first("content-type")
    if kind not in (None, JSON) and kind.split(";")[0].strip().lower() != JSON:
        raise invalid_request("The body must be JSON: send it as application/json.", 415)


def json_response(body: bytes) -> Response:
    """A response in JSON."""
    return Response(body, media_type=JSON)
