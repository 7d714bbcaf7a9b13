"""Private: headers of requests and responses. Two allow-lists name the headers that pass between
the browser and the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar, overload

from .errors import invalid_request
from .types import (
    GRANT_HEADER,
    LOW_BUDGET_HEADER,
    LOWERED_HEADER,
    RESERVED_HEADER,
    USER_HEADER,
    WAIT_HEADER,
)

#: The headers of a browser's request that the middleware sends to the service. It adds its own
#: credentials and a request id.
PASSED_UP = (
    "content-type",
    "accept",
    "idempotency-key",
    LOW_BUDGET_HEADER,
    WAIT_HEADER,
    "traceparent",
    "tracestate",
)
#: The headers of the service's response that the middleware sends to the browser.
PASSED_DOWN = (
    *("content-type", "content-encoding", "retry-after"),
    *(LOWERED_HEADER, RESERVED_HEADER),
)

# Almost every request needs these headers, so they are decoded at once. Other headers are decoded
# on first access.
_COMMON_REQUEST = (
    *PASSED_UP,
    "authorization",
    "content-length",
    "cookie",
    "origin",
    "sec-fetch-site",
    "transfer-encoding",
    "x-request-id",
    GRANT_HEADER,
    USER_HEADER,
)

T = TypeVar("T")
Pairs = Sequence[tuple[str, str]]
Raw = Sequence[tuple[bytes, bytes]]


class Headers(Mapping[str, str]):
    """Headers by name. Upper and lower case do not matter. Repeated headers are joined by commas,
    and cookies by semicolons.

    Attributes:
        common: the headers in ``PASSED_UP``, ``PASSED_DOWN`` and a few more that almost every
            request needs. The names are in lower case. Use ``get`` for other headers.
    """

    __slots__ = ("_fields", "_load", "_repeated", "_source", "common")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        pairs = [(name.lower(), value) for name, value in fields]
        self.common = self._fields = _joined(pairs)
        self._repeated = _values_of_repeated(pairs)

    @classmethod
    def of_scope(cls, raw: Raw) -> Self:
        """The headers of an ASGI scope."""
        return cls.__new__(cls)._set(*_picked(raw, _REQUEST_BYTES), _decoded, raw)

    @classmethod
    def of_environ(cls, environ: Mapping[str, Any]) -> Self:
        """The headers in a WSGI environ."""
        common = {name: environ[key] for key, name in _ENVIRON.items() if key in environ}
        return cls.__new__(cls)._set(common, {}, _in_environ, environ)

    @classmethod
    def of_response(cls, raw: Raw) -> Self:
        """The headers of a response, in the form of the HTTP clients."""
        return cls.__new__(cls)._set(*_picked(raw, _RESPONSE_BYTES), _decoded, raw)

    def _set(
        self,
        common: dict[str, str],
        repeated: dict[str, list[str]],
        load: Callable[[Any], Pairs],
        source: Any,
    ) -> Self:
        self.common = common
        self._repeated = repeated
        self._fields: dict[str, str] | None = None
        self._load = load
        self._source = source
        return self

    @property
    def fields(self) -> dict[str, str]:
        """All headers, by name in lower case."""
        if self._fields is None:
            self._fields = _joined(self._load(self._source))
        return self._fields

    def first(self, name: str) -> str | None:
        """The value of one of the common headers. If the header is repeated, the first value."""
        values = self._repeated.get(name)
        return values[0] if values else self.common.get(name)

    def single(self, name: str) -> str | None:
        """The value of one of the common headers, or None.

        Raises:
            WattfareError: ``invalid_request``; the header is repeated.
        """
        if name in self._repeated:
            raise invalid_request(f"The header {name} is repeated. Send it only once.")
        return self.common.get(name)

    def __getitem__(self, name: str) -> str:
        return self.fields[name.lower()]

    @overload
    def get(self, name: str, default: None = None) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    @overload
    def get(self, name: str, default: T) -> str | T: ...
    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own method is slow
        return self.fields.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        # The values may be cookies and credentials.
        return f"Headers({', '.join(self.fields)})"


def _joined(pairs: Pairs) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    for name, values in _values_of_repeated(pairs).items():
        fields[name] = ("; " if name == "cookie" else ", ").join(values)
    return fields


def _values_of_repeated(pairs: Pairs) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: every for name, every in values.items() if len(every) > 1}


_REQUEST_BYTES = {name.encode(): name for name in _COMMON_REQUEST}
_RESPONSE_BYTES = {name.encode(): name for name in PASSED_DOWN}


def _picked(raw: Raw, names: dict[bytes, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    common: dict[str, str] = {}
    for key, value in raw:
        name = names.get(key)
        if name is None:  # a few servers do not use lower case
            name = names.get(key.lower())
            if name is None:
                continue
        if name in common:
            pairs = _decoded(raw)
            every = _joined(pairs)
            common = {name: every[name] for name in names.values() if name in every}
            return common, _values_of_repeated(pairs)
        common[name] = value.decode("latin-1")
    return common, {}


def _decoded(raw: Raw) -> Pairs:
    return [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in raw]


# An environ has these two without a prefix. With the prefix HTTP_, a client has forged them.
_PLAIN_HEADERS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})


def _key_of(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in _PLAIN_HEADERS else f"HTTP_{key}"


_ENVIRON = {_key_of(name): name for name in _COMMON_REQUEST}


def _in_environ(environ: Mapping[str, Any]) -> Pairs:
    return [
        (key.removeprefix("HTTP_").replace("_", "-").lower(), value)
        for key, value in environ.items()
        if key in _PLAIN_HEADERS or (key.startswith("HTTP_") and key[5:] not in _PLAIN_HEADERS)
    ]
