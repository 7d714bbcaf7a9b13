"""Converts requests and responses between Django and Wattfare."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, StreamingHttpResponse

from wattfare_mw.framework import (
    Answer,
    Request,
    Response,
    read_limited,
    read_up_to,
    request_from_environ,
)

#: Bodies above this number of bytes are read in a thread, because Django may keep them in a file.
_LARGE_BODY = 2**20


def our_request(request: Any, path: str | None = None) -> Request:
    """Convert a Django request to a :class:`wattfare_mw.Request`. ``path``: the path relative to
    the script name, if known."""
    ours = request_from_environ(request.META, request.path_info if path is None else path)
    ours.raw = request
    return ours


def read_body(request: Any, limit: int) -> bytes:
    """Read the request's body. Django's ``DATA_UPLOAD_MAX_MEMORY_SIZE`` does not apply, because it
    is too small for images.

    Raises:
        WattfareError: the body is larger than ``limit``, or the client left before its end.
    """
    return read_limited(limit, partial(_read_some, request))


async def aread_body(request: Any, limit: int) -> bytes:
    """:func:`read_body`, on an event loop."""
    length = request.META.get("CONTENT_LENGTH") or ""
    if length.isdecimal() and int(length) <= _LARGE_BODY:
        return read_body(request, limit)
    return await asyncio.to_thread(read_body, request, limit)


def _read_some(request: Any, size: int) -> bytes:
    if hasattr(request, "_body"):  # other middleware has read it
        body = request.body
    else:
        if request._read_started:
            _rewind(request)
        body = read_up_to(size, request.read)
    length = request.META.get("CONTENT_LENGTH") or ""
    if length.isdecimal():
        if len(body) < min(int(length), size):
            raise OSError("the client disconnected")
    elif not body and request.META.get("wsgi.input_terminated"):
        # Django treats a body without an announced length as empty, so read it from the server.
        body = read_up_to(size, request.META["wsgi.input"].read)
    return body


def _rewind(request: Any) -> None:
    stream = request._stream
    if not (hasattr(stream, "seekable") and stream.seekable()):
        raise RuntimeError(
            "Middleware before WattfareMiddleware has read the body with request.read(), so the"
            " body is no longer available. In that middleware, use request.body instead."
        )
    stream.seek(0)


class _WholeResponse(HttpResponse):
    """A complete response. The call counts as a running call until the server has sent the
    response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(cast("bytes", answer.body), status=answer.status, headers=answer.headers)
        self._release = answer.close

    def close(self) -> None:
        super().close()
        if self._release is not None:
            self._release()


class _AsyncStream(StreamingHttpResponse):
    """An async stream. Django closes a response in a thread, so this closes the stream on its event
    loop."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body, status=answer.status, headers=answer.headers)
        self._aclose = cast("Any", answer.close)

    def close(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            async_to_sync(self._aclose)()
        else:
            self._closing = loop.create_task(self._aclose())
        super().close()


def django_response(request: Any, answer: Answer) -> Any:
    """Convert an answer to a Django response."""
    if isinstance(answer.body, bytes):
        response = _WholeResponse(answer)
    else:
        # Prevent GZipMiddleware from compressing the stream, because it buffers events.
        request.META["HTTP_ACCEPT_ENCODING"] = "identity"
        if isinstance(request, ASGIRequest):
            response = _AsyncStream(answer)
        else:
            response = StreamingHttpResponse(
                answer.body, status=answer.status, headers=answer.headers
            )
    if "content-type" not in answer.headers:  # Django adds a default
        del response.headers["content-type"]
    return response


def plain_response(response: Response) -> HttpResponse:
    """Convert a complete response to a Django response."""
    return HttpResponse(response.body, status=response.status, headers=response.headers)
