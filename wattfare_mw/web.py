"""A request and an answer as plain values, whichever server or framework they came through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Self
from urllib.parse import parse_qs

import msgspec

from .types import GRANT_HEADER, LOW_BUDGET_HEADER, LOWERED_HEADER


#: What is read here of nearly every request's headers, and of an answer's.
REQUEST_HEADERS = (
    "accept",
    "content-length",
    "content-type",
    "cookie",
    "idempotency-key",
    "origin",
    "sec-fetch-site",
    "traceparent",
    "tracestate",
    "x-request-id",
    GRANT_HEADER,
    LOW_BUDGET_HEADER,
)
ANSWER_HEADERS = ("content-encoding", "content-type", "retry-after", LOWERED_HEADER)

Pairs = Sequence[tuple[str, str]]
Raw = Sequence[tuple[bytes, bytes]]


class Headers(Mapping[str, str]):
    """Headers to look up by name in any case. A header that came more than once is one value,
    joined by commas (cookies by semicolons).

    Attributes:
        read: of :data:`REQUEST_HEADERS` or :data:`ANSWER_HEADERS` those that there are, by name
            in lower case. For the others most often nobody asks, so that they are made of what a
            server or a client gives when somebody does.
    """

    __slots__ = ("_fields", "_load", "_source", "read")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self.read = self._fields = _joined([(name.lower(), value) for name, value in fields])

    @classmethod
    def of_scope(cls, raw: Raw) -> Self:
        """An ASGI scope's."""
        return cls.__new__(cls)._set(_picked(raw, _REQUEST_BYTES), _decoded, raw)

    @classmethod
    def of_environ(cls, environ: Mapping[str, Any]) -> Self:
        """A WSGI environ's."""
        read = {name: environ[key] for key, name in _ENVIRON.items() if key in environ}
        return cls.__new__(cls)._set(read, _in_environ, environ)

    @classmethod
    def of_answer(cls, raw: Raw) -> Self:
        """An HTTP client's, of an answer."""
        return cls.__new__(cls)._set(_picked(raw, _ANSWER_BYTES), _decoded, raw)

    def _set(self, read: dict[str, str], load: Callable[[Any], Pairs], source: Any) -> Self:
        self.read = read
        self._fields: dict[str, str] | None = None
        self._load = load
        self._source = source
        return self

    @property
    def fields(self) -> dict[str, str]:
        """All, by name in lower case."""
        if self._fields is None:
            self._fields = _joined(self._load(self._source))
        return self._fields

    def __getitem__(self, name: str) -> str:
        return self.fields[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own is slow, and much used
        return self.fields.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        # Cookies and credentials travel in headers.
        return f"Headers({', '.join(self.fields)})"


def _joined(pairs: Pairs) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    fields.clear()
    for name, value in pairs:
        if name in fields:
            glue = "; " if name == "cookie" else ", "
            value = fields[name] + glue + value
        fields[name] = value
    return fields


_REQUEST_BYTES = {name.encode(): name for name in REQUEST_HEADERS}
_ANSWER_BYTES = {name.encode(): name for name in ANSWER_HEADERS}


def _picked(raw: Raw, names: dict[bytes, str]) -> dict[str, str]:
    read: dict[str, str] = {}
    for key, value in raw:
        name = names.get(key)
        if name is None:  # most write them in lower case; where one does not, none may be missed
            name = names.get(key.lower())
            if name is None:
                continue
        if name in read:
            every = _joined(_decoded(raw))
            return {name: every[name] for name in names.values() if name in every}
        read[name] = value.decode("latin-1")
    return read


def _decoded(raw: Raw) -> Pairs:
    return [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in raw]


# These two stand in an environ without the prefix; with it, they are a client's own invention.
_PLAIN_HEADERS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})


def _key_of(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in _PLAIN_HEADERS else f"HTTP_{key}"


_ENVIRON = {_key_of(name): name for name in REQUEST_HEADERS}


def _in_environ(environ: Mapping[str, Any]) -> Pairs:
    return [
        (key.removeprefix("HTTP_").replace("_", "-").lower(), value)
        for key, value in environ.items()
        if key in _PLAIN_HEADERS or (key.startswith("HTTP_") and key[5:] not in _PLAIN_HEADERS)
    ]


class Request:
    """What a request is to ``resolve_user`` and ``request_limit``: read-only, parsed when asked.

    Attributes:
        method: in capitals.
        path: below the mount point, decoded.
        headers: by name, in any case.
        client: the peer's address, or None where the server does not know it.
        raw: the ASGI ``scope`` or the WSGI ``environ``.
        interface: which of the two.
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
            raise AttributeError("this request came through WSGI: it has an environ and no scope")
        return self.raw

    @property
    def environ(self) -> dict[str, Any]:
        """The WSGI environ.

        Raises:
            AttributeError: the request came through ASGI.
        """
        if self.interface != "wsgi":
            raise AttributeError("this request came through ASGI: it has a scope and no environ")
        return self.raw

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies by name; of one given more than once, the first, as in Flask: it is the one
        with the longest path."""
        if self._cookies is None:
            header = self.headers.read.get("cookie")
            self._cookies = _parse_cookies(header) if header else {}
        return self._cookies

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters by name; of one given more than once, the last."""
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
    from werkzeug.sansio.http import parse_cookie  # which not every app needs

    return parse_cookie


def _first_of_each(pairs: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    return dict(pairs[::-1])


class Response(msgspec.Struct, frozen=True, gc=False):
    """An answer to send: names of headers in lower case, each once."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        # The body may hold a session token.
        return f"Response(status={self.status}, {len(self.body)} bytes)"


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON that no cache keeps."""
    return Response(
        status,
        {"content-type": "application/json", "cache-control": "no-store", **(headers or {})},
        body,
    )
