"""The transports over an app's httpx or httpx2 client, and what they share with our own connections
(:mod:`~wattfare_mw.transport.own_httpx`). The two libraries differ only in name."""

from __future__ import annotations

import importlib
from functools import cache, lru_cache
from typing import Any

from ..errors import WattfareError
from ..headers import Headers
from .base import (
    MAX_BODY_BYTES,
    AsyncHTTPResponse,
    BodyParts,
    Failures,
    HTTPRequest,
    HTTPResponse,
    LoopPool,
    Pool,
)


def close_client(client: Any) -> None:
    client.close()


async def close_async_client(client: Any) -> None:
    await client.aclose()


class HttpxTransport:
    """A transport over an ``httpx.Client`` or an ``httpx2.Client``."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool

    def send(self, request: HTTPRequest) -> HTTPResponse:
        client = self._pool.get()
        library = _library_of(client)
        try:
            outgoing = _request_of(client, library, request)
            return HttpxResponse(client.send(outgoing, **_SENDING), library)
        except BaseException as error:
            library.failures.convert(error)
            raise

    def close(self) -> None:
        self._pool.close()


class AsyncHttpxTransport:
    """A transport over an ``httpx.AsyncClient`` or an ``httpx2.AsyncClient``."""

    def __init__(self, pool: LoopPool[Any]) -> None:
        self._pool = pool

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse:
        client = self._pool.get()
        library = _library_of(client)
        try:
            outgoing = _request_of(client, library, request)
            return AsyncHttpxResponse(await client.send(outgoing, **_SENDING), library)
        except BaseException as error:
            library.failures.convert(error)
            raise

    async def close(self) -> None:
        await self._pool.close()


# `auth` is None because the app's client may have credentials for other services. Our own are in
# the headers.
_SENDING: dict[str, Any] = {"stream": True, "follow_redirects": False, "auth": None}


class Library:
    """httpx or httpx2, with objects that are created once."""

    def __init__(self, httpx: Any) -> None:
        self.failures = Failures(
            (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError),
            (
                httpx.ConnectError,
                httpx.ConnectTimeout,
                httpx.PoolTimeout,
                httpx.ProxyError,
                httpx.UnsupportedProtocol,
                httpx.InvalidURL,
            ),
        )
        self.httpx = httpx
        self._url = lru_cache(maxsize=64)(httpx.URL)

    def request(self, request: HTTPRequest, headers: list[tuple[bytes, bytes]]) -> Any:
        """The library's request with these headers."""
        connect, read = request.connect_timeout, request.read_timeout
        return self.httpx.Request(
            request.method,
            self._url(request.url),
            headers=headers,
            content=request.body,
            extensions={
                "timeout": {"connect": connect, "read": read, "write": read, "pool": connect}
            },
        )


def _library_of(client: object) -> Library:
    return _library_of_class(type(client))


@cache
def _library_of_class(cls: type[object]) -> Library:
    for base in cls.__mro__:  # an app may pass a client of a subclass
        name = base.__module__.partition(".")[0]
        if name in ("httpx", "httpx2"):
            return library_named(name)
    raise TypeError(f"{cls} is not a client of httpx or httpx2")  # pragma: no cover


@cache
def library_named(name: str) -> Library:
    return Library(importlib.import_module(name))


def _request_of(client: Any, library: Library, request: HTTPRequest) -> Any:
    # This does not call `client.build_request`, whose merging of headers takes longer than
    # everything else here. It would also add the cookies and the URL parameters of the app's
    # client, which are for other services.
    headers = {name.lower(): value for name, value in client.headers.raw}
    for name, value in request.headers.items():
        headers[name.encode()] = value.encode()
    headers.pop(b"cookie", None)
    return library.request(request, list(headers.items()))


class HttpxResponseBase:
    def __init__(self, response: Any, library: Library) -> None:
        self._response = response
        self._failures = library.failures
        self._raw: Any = None
        self.status: int = response.status_code
        self.headers = Headers.of_response(response.headers.raw)


class HttpxResponse(HttpxResponseBase):
    def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        parts = BodyParts(limit)
        try:
            while part := self.read_some():
                parts.add(part)
        except WattfareError:
            self.close()
            raise
        return parts.join()

    def read_some(self) -> bytes:
        try:
            if self._raw is None:
                response = self._response
                # Read the stream below `iter_raw`, which would count and split the chunks. If a
                # hook of the app has read the body, use that.
                self._raw = iter(
                    response.iter_raw() if response.is_stream_consumed else response.stream
                )
            for chunk in self._raw:
                if chunk:
                    return chunk
            self._ended()
        except BaseException as error:
            self.close()
            self._failures.convert(error)
            raise
        return b""

    def _ended(self) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()


class AsyncHttpxResponse(HttpxResponseBase):
    async def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        parts = BodyParts(limit)
        try:
            while part := await self.read_some():
                parts.add(part)
        except WattfareError:
            await self.close()
            raise
        return parts.join()

    async def read_some(self) -> bytes:
        try:
            if self._raw is None:
                response = self._response
                self._raw = aiter(
                    response.aiter_raw() if response.is_stream_consumed else response.stream
                )
            async for chunk in self._raw:
                if chunk:
                    return chunk
            await self._ended()
        except BaseException as error:
            await self.close()
            self._failures.convert(error)
            raise
        return b""

    async def _ended(self) -> None:
        await self.close()

    async def close(self) -> None:
        # An app's own transport may return an iterator without a `close`.
        if (close := getattr(self._raw, "aclose", None)) is not None:
            await close()
        await self._response.aclose()
