"""Private: a request and a response as plain objects, for any server and framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec

from .headers import Headers


class Request:
    """The request that ``resolve_user`` and ``request_limit`` get. It is read-only.

    Attributes:
        method: the method, in capitals.
        path: the decoded path, relative to the point where the app is mounted.
        headers: the headers by name. Upper and lower case do not matter.
        client: the client's address. None if the server does not know it.
        raw: the ASGI ``scope`` or the WSGI ``environ``.
        interface: ``"asgi"`` or ``"wsgi"``.
    """

    __slots__ = (
        "_cookies",
        "_query",
        "client",
        "headers",
        "interface",
        "method",
        "path",
        "query_string",
        "raw",
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        query_string: str = "",
        client: str | None = None,
        raw: Any = None,
        interface: Literal["asgi", "wsgi"] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers if isinstance(headers, Headers) else Headers(headers.items())
        self.query_string = query_string
        self.client = client
        self.raw = raw
        self.interface = interface
        self._cookies: Mapping[str, str] | None = None
        self._query: Mapping[str, str] | None = None

    @property
    def scope(self) -> dict[str, Any]:
        """The ASGI scope.

        Raises:
            AttributeError: the request came through WSGI.
        """
        if self.interface != "asgi":
            raise AttributeError("this request came through WSGI, so it has no scope: use environ")
        return self.raw

    @property
    def environ(self) -> dict[str, Any]:
        """The WSGI environ.

        Raises:
            AttributeError: the request came through ASGI.
        """
        if self.interface != "wsgi":
            raise AttributeError("this request came through ASGI, so it has no environ: use scope")
        return self.raw

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies by name. If a cookie is repeated, the first value is used, as in Flask. This
        is the cookie with the longest path."""
        if self._cookies is None:
            header = self.headers.common.get("cookie")
            self._cookies = _parse_cookies(header) if header else {}
        return self._cookies

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters by name. If a parameter is repeated, the last value is used."""
        if self._query is None:
            pairs = parse_qs(self.query_string, keep_blank_values=True)
            self._query = {name: values[-1] for name, values in pairs.items()}
        return self._query

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.path!r})"


def _parse_cookies(header: str) -> Mapping[str, str]:
    return _cookie_parser()(header, cls=_first_of_each)


@cache
def _cookie_parser() -> Callable[..., Any]:
    from werkzeug.sansio.http import parse_cookie  # imported here because few apps need it

    return parse_cookie


def _first_of_each(pairs: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    return dict(pairs[::-1])


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response to send. The names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        # The body may have a session token.
        return f"Response(status={self.status}, {len(self.body)} bytes)"


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response that must not be cached."""
    return Response(
        status,
        {"content-type": "application/json", "cache-control": "no-store", **(headers or {})},
        body,
    )
