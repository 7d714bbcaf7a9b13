"""What every transport gives and takes, and what they share: their shapes, the pools, the
certificates, and the error that a failure becomes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from ..errors import WattfareNetworkError

if TYPE_CHECKING:
    import ssl

C = TypeVar("C")

#: Idle connections are let go before the usual server (5 s) closes them under a request's feet.
KEEPALIVE_SECONDS = 4.0


class Secret(str):
    """A string that does not show itself: what stands in a repr, a log's ``%r`` or the local
    variables of a traceback is a mask."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


class HTTPRequest(msgspec.Struct, frozen=True):
    """A request to send. Timeouts in seconds, None for none: one for the connection to be made,
    one for each silence while reading."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None = None
    connect_timeout: float | None = None
    read_timeout: float | None = None

    def __repr__(self) -> str:
        return f"HTTPRequest({self.method!r}, {self.url!r})"


class Answer(Protocol):
    """An answer whose head is here and whose body is on its way."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def read(self) -> bytes:
        """The whole body; the answer is closed by it."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes."""
        ...

    def close(self) -> None:
        """Let go of the connection; one that is in mid-answer is closed."""
        ...


class AsyncAnswer(Protocol):
    """:class:`Answer`, for an event loop."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    async def read(self) -> bytes: ...
    def chunks(self) -> AsyncIterator[bytes]: ...
    async def close(self) -> None: ...


class Transport(Protocol):
    """Sends a request and gives the answer as soon as its head is here.

    Raises:
        WattfareNetworkError: it could not; ``sent=False`` where no connection was made.
    """

    def send(self, request: HTTPRequest) -> Answer: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """:class:`Transport`, for an event loop."""

    async def send(self, request: HTTPRequest) -> AsyncAnswer: ...
    async def close(self) -> None: ...


def network_error(error: BaseException, *, sent: bool) -> WattfareNetworkError:
    # The library's frames hold the headers, and so the secret key, in their local variables;
    # a reporter of tracebacks may print those. What went wrong stays, where it did does not.
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        inner.__traceback__ = None
        inner = inner.__cause__ or inner.__context__
    what = "The connection to Wattfare broke." if sent else "Wattfare could not be reached."
    return WattfareNetworkError(what, sent=sent)


# -- pools: one for each process, and for each event loop in it


# Clients of a parent process. A forked child must not use them, and must not collect them
# either: what a collected client sends in farewell would go out on the parent's sockets.
_inherited: list[object] = []


class Pool(Generic[C]):
    """One client for each process, made when it is first needed."""

    def __init__(self, make: Callable[[], C], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._client: C | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def get(self) -> C:
        client = self._client
        if client is not None and self._pid == os.getpid():
            return client
        if self._pid != os.getpid():
            # The parent may have held the lock in the moment of the fork.
            self._lock = threading.Lock()
            if self._owned:
                _inherited.append(self._client)
                self._client = None
            self._pid = os.getpid()
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def take(self) -> C | None:
        """The client to close, if there is one that is ours to close."""
        if not self._owned or self._pid != os.getpid():
            return None
        client, self._client = self._client, None
        return client


class LoopPool(Generic[C]):
    """One client for each event loop of each process: a connection cannot leave its loop."""

    def __init__(self, make: Callable[[], C], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, C] = WeakKeyDictionary()
        self._pid = os.getpid()

    def get(self) -> C:
        if self._pid != os.getpid():
            if self._owned:
                _inherited.append(self._clients)
            self._clients, self._pid = WeakKeyDictionary(), os.getpid()
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._make()
        return client

    def take(self) -> C | None:
        """The client of the running loop, if there is one that is ours to close."""
        if not self._owned or self._pid != os.getpid():
            return None
        return self._clients.pop(asyncio.get_running_loop(), None)


@cache
def ssl_context() -> ssl.SSLContext:
    import httpx

    # One rule for all transports: SSL_CERT_FILE and SSL_CERT_DIR, else certifi's bundle.
    return httpx.create_ssl_context()
