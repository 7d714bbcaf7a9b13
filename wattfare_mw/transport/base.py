"""Shared parts of the transports: requests, responses, pools and errors."""

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

#: How long a connection may idle, in seconds. Most servers close an idle connection after 5 s,
#: which could break a new request.
KEEPALIVE_SECONDS = 4.0
#: The maximum size of a body that is read into memory, in bytes.
MAX_BODY_BYTES = 64 * 2**20


class Secret(str):
    """A string with a masked repr. Its value does not appear in a repr, in a log's ``%r``, or in a
    traceback that shows local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"

    def __getitem__(self, key: SupportsIndex | slice) -> Secret:
        return Secret(super().__getitem__(key))  # rich shows the repr of a slice


class SecretBytes(bytes):
    """:class:`Secret`, for bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'…'"


def hidden(value: Any) -> Any:
    """Mask a secret that an app has passed, if it is a string. Call this before anything else, and
    assign the result to the same name. If later code raises an error, an error reporter may show
    the local variables of every frame."""
    return Secret(value) if isinstance(value, str) else value


def header_key(key: str) -> Secret | None:
    """A key for a header, without white space around it, such as the line end of a file. None if a
    header cannot have this key, because it is empty or has characters other than visible ASCII."""
    key = Secret(key.strip())
    visible = key and key.isascii() and key.isprintable() and " " not in key
    return key if visible else None


class HTTPRequest(msgspec.Struct, frozen=True, gc=False):
    """A request to send. Timeouts are in seconds, and None means no limit. ``connect_timeout``
    limits the connect, and ``read_timeout`` each pause in the answer."""

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
        limit: the maximum number of bytes of all parts together.
    """

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """Add the next part.

        Raises:
            WattfareError: ``upstream``; the body is too large.
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
    """An answer with an unread body."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Read the whole body and close the response.

        Raises:
            WattfareError: ``upstream``; the body has more than ``limit`` bytes.
        """
        ...

    def read_some(self) -> bytes:
        """Read the next part of the body. At the end, close the response and return an empty
        part."""
        ...

    def close(self) -> None:
        """Release the connection. Close it if the body has not been read to its end."""
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
    """Sends requests. ``send`` returns the answer as soon as its headers have arrived.

    Raises:
        WattfareNetworkError: the request failed; ``sent`` is False if there was no connection.
    """

    def send(self, request: HTTPRequest) -> HTTPResponse: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """:class:`Transport`, for an event loop."""

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse: ...
    async def close(self) -> None: ...


#: The credentials in a URL. aiohttp's errors may repeat the URL of a proxy.
_USERINFO = re.compile(r"://[^\s'\"]*@")


class LibraryError(Exception):
    """Replaces an HTTP library's error. It has only the message.

    Attributes:
        kinds: the text for the log, because the message may repeat data from a server.
    """

    kinds: str = ""


class Failures:
    """Converts the exceptions of an HTTP library to our own error.

    Args:
        failures: the exceptions of a failed request.
        not_sent: the exceptions after which the request cannot have arrived.
    """

    __slots__ = ("_failures", "_not_sent")

    def __init__(
        self, failures: tuple[type[Exception], ...], not_sent: tuple[type[Exception], ...]
    ) -> None:
        self._failures = failures
        self._not_sent = not_sent

    def convert(self, error: BaseException) -> None:
        """Raise our own error in place of a library's exception. For any other exception, return,
        and the caller raises it again.

        Raises:
            WattfareNetworkError: the request failed. Replaces the library's exception.
        """
        # The library's frames have the headers, and so the secret key, in their local variables. An
        # error reporter may print these, also for a cancellation by an app's timeout. The library's
        # errors reference the request, or have a proxy's password.
        forget_frames(error)
        if isinstance(error, self._failures):
            sent = not isinstance(error, self._not_sent)
            what = "The connection to Wattfare broke." if sent else "Wattfare could not be reached."
            said = LibraryError(f"{type(error).__name__}: {_USERINFO.sub('://', str(error))}")
            said.kinds = kinds_of(error)
            raise WattfareNetworkError(what, sent=sent) from said


# -- pools: one for each process, and for each event loop in it


# Clients of the parent process. A forked child must not use them. It must not free them either,
# because a freed client would send a TLS shutdown on the parent's sockets.
_inherited: list[object] = []
# The id of this process. Each request needs it, and a system call would be slower.
_pid = os.getpid()


def _after_fork() -> None:
    global _pid
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class _Slot(Generic[C]):
    """The state of a pool in one process. A forked child creates a new one, because another thread
    of the parent may have held the lock at the fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: C | None = None


class Pool(Generic[C]):
    """Holds one client for each process. It is created on first use.

    Args:
        make: creates a client.
        close: closes a client; None if the app closes it.
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
        WattfareError: 501; this code does not run on asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WattfareError(
            "Wattfare needs asyncio, but this code runs on another event loop, such as trio. Use a"
            " server or a worker that runs on asyncio.",
            status=501,
        ) from None


Lease = AsyncGenerator[C, None]


class LoopPool(Generic[C]):
    """Holds one client for each event loop of each process, because a connection belongs to its
    event loop. A client is closed at the latest when its event loop ends.

    Args:
        make: creates a client.
        close: closes a client; None if the app closes it.
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
        except RuntimeError:  # trio, which never has a client
            return
        _, lease = self._clients.pop(loop, (None, None))
        if lease is not None:
            await lease.aclose()


def _lease(client: C, close: Callable[[C], Awaitable[None]]) -> Lease[C]:
    """An async generator that closes ``client`` at its end. ``asyncio.run`` and every server end
    the async generators of an event loop before they close it. An event loop has no other hook."""

    async def lease() -> Lease[C]:
        try:
            yield client
        finally:
            await close(client)

    begun = lease()
    with suppress(StopIteration):  # nothing awaits before the `yield`
        begun.__anext__().__await__().__next__()
    return begun
