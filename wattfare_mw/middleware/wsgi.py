"""The middleware for WSGI apps, which is a driver of the gate."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from .. import body_memory
from ..client import AsyncWattfare, SyncRunner, Wattfare, client_for, in_request
from ..current import CurrentRequest, around_wsgi
from ..errors import WattfareError
from ..flow import run
from ..handles import User
from ..headers import Headers
from ..receiving import too_large
from ..web import Request
from .answers import Answer
from .base import Middleware
from .gate import ReadBody, cut_short, is_json
from .options import Options, check_options, hide_secret_key
from .relay import Record, Relay

if TYPE_CHECKING:
    # For a type checker, `WattfareMiddleware(app)` returns one of its subclasses.
    from .factory import WattfareMiddleware as _Base
else:
    _Base = Middleware

#: How many bytes of a body to read at a time. The length of a body may be unknown, so its claim on
#: memory grows after each piece.
PIECE_BYTES = 2**16

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
ReadInput = Callable[[int], bytes]


class WattfareWSGIMiddleware(_Base):
    """:class:`~wattfare_mw.WattfareMiddleware` around a WSGI app."""

    _client_kind = Wattfare
    _client: Wattfare
    _runner: SyncRunner

    if TYPE_CHECKING:

        def __new__(cls, *_args: Any, **_options: Any) -> Self: ...

    def __init__(
        self, app: Any, *, interface: Literal["auto", "wsgi"] = "wsgi", **options: Unpack[Options]
    ) -> None:
        hide_secret_key(options)
        check_options(options)
        super().__init__(app, **options)
        # A WSGI environ has the UTF-8 bytes of a path as latin-1 text. These texts sort in the same
        # order as the paths, so the range of paths stays correct.
        called, first, last = self._app_and_range
        self._app_and_range = called, _latin_1(first), _latin_1(last)
        if self._owns_client:
            # WSGI has no shutdown event. Connections are closed when the middleware is freed, or
            # when Python exits.
            weakref.finalize(self, self._client.close)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        app, first, last = self._app_and_range
        try:
            path = environ["PATH_INFO"]
        except KeyError:  # the app's root
            path = ""
        if last >= path >= first:
            app = self._app_for(path)
        return app(environ, start_response)

    def _app_for(self, raw: str) -> Callable[[Environ, StartResponse], Iterable[bytes]]:
        """The app that answers this path: the wrapped one, or our own."""
        path = raw.encode("latin-1").decode("utf-8", "replace")
        if path in self._routes:
            return partial(self._serve, path)
        if self._gate.below(path) is not None:
            return partial(self._serve_unless_app, path)
        return self._called_app

    def _serve(self, path: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = self.serve(path, environ)
        start_response(status, headers)
        return body

    def _serve_unless_app(
        self, path: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call the app first. If it has no route for the path, send our own answer."""
        begun = is_ours = False

        def watch_start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            nonlocal begun, is_ours
            begun = True
            is_ours = status.startswith("404") and not _has_route(environ, headers)
            return _drop if is_ours else start_response(status, headers, *error)

        body = self._called_app(environ, watch_start)
        if not begun:
            body = _Begun(body)  # a generator calls start_response on the first read
        if not is_ours:
            return body
        _close(body)
        return self._serve(path, environ, start_response)

    def user(self, environ: Environ) -> User:
        """A handle for the user who makes this request, for the app's own code.

        Raises:
            WattfareAuthError: no user is signed in.
        """
        return self.user_of(self.request_from(environ))

    def user_of(self, request: Request) -> User:
        """:meth:`user`, for a framework with its own requests."""
        return self._client.user(self._runner.run(self._gate.identify(request)))

    def request_from(self, raw: Any) -> Request:
        return request_from_environ(raw)

    @property
    def _sync_client(self) -> Wattfare:
        return self._client

    @cached_property
    def _async_client(self) -> AsyncWattfare:
        return in_request(client_for(AsyncWattfare, self._client)[0])

    def current_request(self, request: Request | Callable[[], Request]) -> CurrentRequest:
        return self.current_request_class(self._driver, request)

    def _with_current_user(self, app: Any) -> Any:
        return around_wsgi(self._driver, app)

    def close(self) -> None:
        """Close our own connections. This also happens at exit."""
        if self._owns_client:
            self._client.close()

    def serve(
        self, path: str, environ: Environ, read_input: ReadInput | None = None
    ) -> tuple[str, list[tuple[str, str]], Iterable[bytes]]:
        """Answer a request to one of our paths. Returns the status line, the headers and the body.

        Args:
            path: the path. It must be one of ours.
            environ: the environ of the request.
            read_input: a function that reads at most the given number of bytes of the body, for a
                framework that may have read the body already. None for :func:`read_body`.
        """
        read = read_input or partial(read_body, environ)
        answer = self.respond(request_from_environ(environ, path), read)
        status, headers, body = answer.status, list(answer.headers.items()), answer.body
        if not isinstance(body, bytes):
            return _line(status), headers, cast("Iterator[bytes]", body)
        if answer.close is None:
            return _line(status), headers, [body]
        return _line(status), headers, _Whole(body, answer.close)

    def respond(self, request: Request, read_input: ReadInput) -> Answer:
        """Answer a request to one of our paths, for a framework with its own requests.

        Args:
            request: the framework's request as a :class:`wattfare_mw.Request`. Its path must be one
                of ours.
            read_input: a function that reads at most the given number of bytes of the body. See
                :func:`read_limited`.
        """
        gate, runner = self._gate, self._runner
        record = Record()

        def perform(command: Any) -> Any:
            if type(command) is ReadBody:
                if command.claim is None:
                    return read_input(command.limit)
                announced = request.headers.common.get("content-length", "")
                if announced.isdecimal():
                    command.claim.grow(int(announced))  # the gate has checked the length
                with command.claim.while_reading():
                    body = read_input(command.limit)
                command.claim.grow(len(body))
                return body
            return runner.perform(command)

        try:
            reply = run(gate.answer(request, record), perform)
            if isinstance(reply, Relay):
                stream = _Stream(reply, lambda: run(gate.finished(record), runner.perform))
                return Answer(reply.status, reply.headers, stream, stream.close)
            if record.begun:
                run(gate.finished(record), runner.perform)
        except BaseException:
            record.release()
            raise
        close = None if record.slot is None else record.release
        return Answer(reply.status, reply.headers, reply.body, close)


def _latin_1(path: str) -> str:
    return path.encode().decode("latin-1")


def _has_route(environ: Environ, headers: list[tuple[str, str]]) -> bool:
    """True if this 404 comes from a route of the app, and not from its router."""
    request: Any = environ.get("werkzeug.request")
    if hasattr(request, "url_rule"):  # Flask's environ has the request with its rule
        return request.url_rule is not None
    kind = next((value for name, value in headers if name.lower() == "content-type"), "")
    return is_json(kind)


def _drop(_data: bytes) -> None:
    """Replaces the ``write`` of ``start_response``."""


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


class _Begun:
    """An answer whose first piece was read in advance, so that its status is known."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._pieces = iter(body)
        try:
            self._first = next(self._pieces, None)
        except BaseException:
            _close(body)
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        first, self._first = self._first, None
        return next(self._pieces) if first is None else first

    def close(self) -> None:
        _close(self._body)


class _Whole:
    """A whole answer. The call counts as a running call until the server has sent the answer."""

    def __init__(self, body: bytes, release: Callable[[], None]) -> None:
        self._body = iter((body,))
        self._release = release

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        self._release()

    # See `_Stream`.
    __del__ = close


class _Stream:
    """A streamed answer for WSGI. If the client leaves, the server notices this at the next chunk,
    and closes this object. This closes the call to the service."""

    def __init__(self, relay: Relay, finish: Callable[[], Any]) -> None:
        self._closed = False
        self._relay = relay
        self._finish = finish
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        relay = self._relay
        if not self._ended:
            try:
                while chunk := relay.answer.read_some():
                    if passed := relay.feed(chunk):
                        return passed
                last = relay.end()
            except WattfareError as error:
                last = relay.broken(error.message.rstrip("."))
            self._ended = True
            if last:
                return last
        raise StopIteration

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._ended = True
        record = self._relay.record
        try:
            self._relay.answer.close()
            self._finish()
        finally:
            record.release()

    # If the framework fails, it may drop the answer without closing it.
    __del__ = close


def read_body(environ: Environ, limit: int) -> bytes:
    """The request's body.

    Raises:
        WattfareError: 413 if the body is larger than ``limit``; 400 if the client left before its
            end.
    """

    def read(size: int) -> bytes:
        return read_up_to(size, get_input_stream(environ, max_content_length=size).read)

    return read_limited(limit, read)


def read_up_to(size: int, read: Callable[[int], bytes]) -> bytes:
    """Read up to ``size`` bytes from a stream that may return fewer at a time.

    Raises:
        WattfareError: ``upstream``, 503; there is not enough memory for this body.
    """
    body = bytearray()  # a list would take far more memory than its pieces, if they are tiny
    while len(body) < size and (part := read(min(size - len(body), PIECE_BYTES))):
        body += part
        body_memory.grow(len(body))
    return bytes(body)


def read_limited(limit: int, read: Callable[[int], bytes]) -> bytes:
    """Read a body within a limit. It calls ``read`` with one byte more than the limit, to detect a
    larger body that has no ``Content-Length``.

    Raises:
        WattfareError: see :func:`read_body`.
    """
    try:
        body = read(limit + 1)
    except RequestEntityTooLarge:
        raise too_large(limit) from None
    except (ClientDisconnected, OSError):
        raise cut_short() from None
    if len(body) > limit:
        raise too_large(limit)
    return body


def request_from_environ(environ: Environ, path: str | None = None) -> Request:
    """The :class:`wattfare_mw.Request` of an environ. ``path``: the path relative to the mount
    point, if known."""
    if path is None:
        path = str(environ.get("PATH_INFO", "")).encode("latin-1").decode("utf-8", "replace")
    return Request(
        environ["REQUEST_METHOD"],
        path,
        Headers.of_environ(environ),
        query_string=environ.get("QUERY_STRING", ""),
        client=environ.get("REMOTE_ADDR"),
        raw=environ,
        interface="wsgi",
    )


def _line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
