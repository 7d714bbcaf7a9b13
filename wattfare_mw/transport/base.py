"""The parts that all transports share: requests and responses, pools, and errors."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, SupportsIndex, TypeVar

import msgspec

from ..errors import WattfareError, WattfareNetworkError, forget_frames
from ..logs import kinds_of

if TYPE_CHECKING:
    from ..headers import Headers

C = TypeVar("C")

#: How long a connection may idle, in seconds. Most servers close theirs after 5 s, which could hit
#: a new request.
KEEPALIVE_SECONDS = 4.0
#: The most bytes of a body that is read into memory.
MAX_BODY_BYTES = 64 * 2**20


class Secret(str):
    """A string whose repr is a mask. It stays hidden in a repr, in a log's ``%r`` and in the local
    variables of a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"

    def __getitem__(self, key: SupportsIndex | slice) -> Secret:
        return Secret(super().__getitem__(key))  # rich slices a string before it takes its repr


class SecretBytes(bytes):
    """:class:`Secret`, for bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'…'"


def hidden(value: Any) -> Any:
    """Hide a secret that an app has passed, if it is a string. Call it first, and assign the result
    to the same name: later code may raise, and error reporters show the local variables of every
    frame."""
    return Secret(value) if isinstance(value, str) else value


def header_key(key: str) -> Secret | None:
    """A key for a header, without surrounding white space, such as the line end of its file. None
    if it cannot be in a header, because it is empty or has characters other than visible ASCII."""
    key = Secret(key.strip())
    visible = key and key.isascii() and key.isprintable() and " " not in key
    return key if visible else None


class HTTPRequest(msgspec.Struct, frozen=True, gc=False):
    """A request to send. Timeouts are in seconds; None means no limit. One limits the connect, the
    other each silence while reading."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None = None
    connect_timeout: float | None = None
    read_timeout: float | None = None

    def __repr__(self) -> str:
        return f"HTTPRequest({self.method!r}, {self.url!r})"


class BodyParts:
    """Collects the parts of a body.

    Args:
        limit: the most bytes of all parts together.
    """

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """Add the next part.

        Raises:
            WattfareError: ``upstream``; there are too many bytes.
        """
        self._size += len(part)
        if self._size > self._limit:
            raise WattfareError(
                f"The answer has more than {self._limit:,} bytes.", code="upstream", status=502
            )
        self._parts.append(part)

    def join(self) -> bytes:
        """The whole body. A single part is not copied."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class HTTPResponse(Protocol):
    """An answer whose headers have arrived, and whose body has not been read."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Read the whole body, and close the response.

        Raises:
            WattfareError: ``upstream``; the body has more than ``limit`` bytes.
        """
        ...

    def read_some(self) -> bytes:
        """The next part of the body. Empty at the end; then the response is closed."""
        ...

    def close(self) -> None:
        """Release the connection. If the body has not been read to its end, the connection is
        closed."""
        ...


class AsyncHTTPResponse(Protocol):
    """:class:`HTTPResponse`, for an event loop."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    async def read(self, limit: int = MAX_BODY_BYTES) -> bytes: ...
    async def read_some(self) -> bytes: ...
    async def close(self) -> None: ...


class Transport(Protocol):
    """Send a request. Returns the answer as soon as its headers have arrived.

    Raises:
        WattfareNetworkError: the request failed; ``sent=False`` if no connection was made.
    """

    def send(self, request: HTTPRequest) -> HTTPResponse: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """:class:`Transport`, for an event loop."""

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse: ...
    async def close(self) -> None: ...


#: The credentials in a URL: a proxy's, which aiohttp repeats.
_USERINFO = re.compile(r"://[^\s'\"]*@")


class LibraryError(Exception):
    """The message of an HTTP library's error, without its other data.

    Attributes:
        kinds: what the log shows. The message may repeat what a server has sent.
    """

    kinds: str = ""


class Failures:
    """Converts the exceptions of an HTTP library into our own error.

    Args:
        failures: the exceptions of a failed request.
        never_made: those after which nothing can have arrived.
    """

    __slots__ = ("_failures", "_never_made")

    def __init__(
        self, failures: tuple[type[Exception], ...], never_made: tuple[type[Exception], ...]
    ) -> None:
        self._failures = failures
        self._never_made = never_made

    def seen(self, error: BaseException) -> None:
        """Handle an exception of the library before it propagates.

        Raises:
            WattfareNetworkError: replaces it if the request failed.
        """
        # The library's frames have the headers, and so the secret key, in their local variables,
        # which error reporters may print. This includes a cancellation, which is how an app's
        # timeout ends a call. The library's errors have the request, or a proxy's password.
        forget_frames(error)
        if isinstance(error, self._failures):
            sent = not isinstance(error, self._never_made)
            what = "The connection to Wattfare broke." if sent else "Wattfare could not be reached."
            said = LibraryError(f"{type(error).__name__}: {_USERINFO.sub('://', str(error))}")
            said.kinds = kinds_of(error)
            raise WattfareNetworkError(what, sent=sent) from said


# -- pools: one for each process, and for each event loop in it


# Clients of a parent process. A forked child must not use them or collect them: a collected client
# would send its farewell on the parent's sockets.
_inherited: list[object] = []
# The id of this process. Each request needs it, and a system call is slower.
_pid = os.getpid()


def _after_fork() -> None:
    global _pid
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class _Slot(Generic[C]):
    """The state of a pool in one process. A forked child makes a new one, because a thread of the
    parent may hold the lock at the moment of the fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: C | None = None


class Pool(Generic[C]):
    """One client for each process, made on first use.

    Args:
        make: makes one.
        close: closes one; None if the app closes the client itself.
    """

    def __init__(self, make: Callable[[], C], close: Callable[[C], None] | None = None) -> None:
        self._make = make
        self._close = close
        self._slots: dict[int, _Slot[C]] = {}

    def get(self) -> C:
        slot = self._slots.get(_pid)
        if slot is None:
            _inherited.extend(self._slots.values())
            slot = self._slots.setdefault(_pid, _Slot())
        client = slot.client
        if client is None:
            with slot.lock:
                client = slot.client
                if client is None:
                    client = slot.client = self._make()
        return client

    def close(self) -> None:
        """Close this process's client, if it is ours."""
        slot = self._slots.get(_pid)
        if slot is None or self._close is None:
            return
        client, slot.client = slot.client, None
        if client is not None:
            self._close(client)


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop.

    Raises:
        WattfareError: 501; this code does not run under asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WattfareError(
            "Wattfare needs asyncio, and this code runs on something else, such as trio."
            " Use a server or a worker that runs on asyncio.",
            status=501,
        ) from None


Lease = AsyncGenerator[C, None]


class LoopPool(Generic[C]):
    """One client for each event loop of each process, because a connection belongs to its loop. A
    client is closed with its loop at the latest.

    Args:
        make: makes one.
        close: closes one; None if the app closes the client itself.
    """

    def __init__(
        self, make: Callable[[], C], close: Callable[[C], Awaitable[None]] | None = None
    ) -> None:
        self._make = make
        self._close = close
        self._clients: dict[asyncio.AbstractEventLoop, tuple[C, Any]] = {}
        self._pid = _pid

    def get(self) -> C:
        try:
            client, lease = self._clients[asyncio.get_running_loop()]
        except (KeyError, RuntimeError):  # the first use on this loop, or there is no loop
            return self._first(running_loop())
        # `Runner.run_sync` of openai-agents ends all async generators, and keeps its loop.
        if self._pid != _pid or (lease is not None and lease.ag_frame is None):
            return self._first(running_loop())
        return client

    def _first(self, loop: asyncio.AbstractEventLoop) -> C:
        if self._pid != _pid:
            _inherited.append(self._clients)
            self._clients, self._pid = {}, _pid
        # A client may reference its loop, so neither would ever be freed.
        for other in list(self._clients):
            if other.is_closed():
                self._clients.pop(other, None)
        client = self._make()
        lease: Any = None if self._close is None else _lease(client, self._close)
        self._clients[loop] = (client, lease)
        return client

    async def close(self) -> None:
        """Close the running loop's client, if it is ours."""
        if self._close is None or self._pid != _pid:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # on trio, on which no client has been made
            return
        _, lease = self._clients.pop(loop, (None, None))
        if lease is not None:
            await lease.aclose()


def _lease(client: C, close: Callable[[C], Awaitable[None]]) -> Lease[C]:
    """An async generator that closes ``client`` at its end. A loop ends its async generators before
    it is closed (``asyncio.run`` and every server do this). A loop has no other hook."""

    async def lease() -> Lease[C]:
        try:
            yield client
        finally:
            await close(client)

    begun = lease()
    with suppress(StopIteration):  # nothing awaits before the `yield`
        begun.__anext__().__await__().__next__()
    return begun
