"""Private: a small HTTP client interface, over httpx, httpx2 or aiohttp.

All transports behave in the same way. Proxies and certificates come from the environment. Redirects
are not followed, cookies are not kept or sent, and answers are not decompressed. A stream has no
total time limit. Each event loop and each process has its own pool. A failed request raises
:class:`~wattfare_mw.WattfareNetworkError`, which says whether the request may have arrived.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeGuard, cast

from . import over_httpx, own_httpx
from .base import (
    AsyncHTTPResponse,
    AsyncTransport,
    HTTPRequest,
    HTTPResponse,
    LoopPool,
    Pool,
    Secret,
    SecretBytes,
    Transport,
    header_key,
    hidden,
    running_loop,
)
from .clients import AsyncHTTPClient, SyncHTTPClient

__all__ = [
    "AsyncHTTPClient",
    "AsyncHTTPResponse",
    "AsyncTransport",
    "HTTPRequest",
    "HTTPResponse",
    "Secret",
    "SecretBytes",
    "SyncHTTPClient",
    "Transport",
    "async_transport",
    "header_key",
    "hidden",
    "running_loop",
    "sync_transport",
]


_SYNC = (("httpx", "Client"), ("httpx2", "Client"))
_ASYNC = (("httpx", "AsyncClient"), ("httpx2", "AsyncClient"), ("aiohttp", "ClientSession"))


def sync_transport(http_client: SyncHTTPClient | None = None) -> Transport:
    """A transport over ``http_client``: an ``httpx.Client``, an ``httpx2.Client``, or a function
    that creates one. For one of these classes itself, the transport has its own connections over
    this library. For None, it has its own connections over httpx.

    Raises:
        TypeError: ``http_client`` is none of these.
    """
    library = _own_library(http_client, _SYNC)
    if library is not None:
        return own_httpx.own_transport(library)
    if _is_a(http_client, _SYNC):
        return over_httpx.HttpxTransport(Pool(lambda: http_client))
    if not _may_make(http_client, _SYNC):
        raise _wrong_kind(http_client, _SYNC)

    def make() -> Any:
        client = http_client()
        if not _is_a(client, _SYNC):
            raise _wrong_kind(client, _SYNC)
        return client

    return over_httpx.HttpxTransport(Pool(make, over_httpx.close_client))


def async_transport(http_client: AsyncHTTPClient | None = None) -> AsyncTransport:
    """A transport over ``http_client``: an ``httpx.AsyncClient``, an ``httpx2.AsyncClient``, an
    ``aiohttp.ClientSession``, or a function that creates one. For one of these classes itself, the
    transport has its own connections over this library. For None, it has its own connections over
    aiohttp if it is installed, or else over httpx.

    Raises:
        TypeError: ``http_client`` is none of these.
    """
    library = _own_library(http_client, _ASYNC)
    if library == "aiohttp":
        from . import over_aiohttp

        pool = LoopPool(lambda: over_aiohttp.LoopSession(over_aiohttp.own_session()), _close)
        return over_aiohttp.AiohttpTransport(pool, own=True)
    if library is not None:
        return own_httpx.own_async_transport(library)
    if _may_make(http_client, _ASYNC):
        return _MadeTransport(http_client)
    return _async_transport_over(http_client, owned=False)


def _async_transport_over(client: Any, *, owned: bool) -> AsyncTransport:
    if not _is_a(client, _ASYNC):
        raise _wrong_kind(client, _ASYNC)
    if _is_a(client, (("aiohttp", "ClientSession"),)):
        from . import over_aiohttp

        pool = LoopPool(lambda: over_aiohttp.LoopSession(client), _close if owned else None)
        return over_aiohttp.AiohttpTransport(pool)
    close = over_httpx.close_async_client if owned else None
    return over_httpx.AsyncHttpxTransport(LoopPool(lambda: client, close))


Kinds = tuple[tuple[str, str], ...]


def _classes(kinds: Kinds) -> tuple[type[Any], ...]:
    # If the app has such a client, its library is imported already, so import nothing here.
    return tuple(getattr(sys.modules[m], name) for m, name in kinds if m in sys.modules)


def _own_library(value: Any, kinds: Kinds) -> str | None:
    """The library for our own connections, if ``http_client`` is exactly one of the classes or
    None. A subclass counts as the app's own function."""
    if value is None:
        has_aiohttp = kinds is _ASYNC and importlib.util.find_spec("aiohttp") is not None
        return "aiohttp" if has_aiohttp else "httpx"
    asked = [cls for cls in _classes(kinds) if cls is value]
    return asked[0].__module__.partition(".")[0] if asked else None


def _is_a(value: object, kinds: Kinds) -> bool:
    return isinstance(value, _classes(kinds))


def _may_make(value: object, kinds: Kinds) -> TypeGuard[Callable[[], Any]]:
    """True if this may be a function that creates a client. A class must be a class of clients."""
    if isinstance(value, type):
        return issubclass(value, _classes(kinds))
    return callable(value) and not inspect.iscoroutinefunction(value)


def _wrong_kind(value: object, kinds: Kinds) -> TypeError:
    wanted = ", ".join(f"{module}.{name}" for module, name in kinds)
    kind = cast("type[object]", value if isinstance(value, type) else type(value))
    return TypeError(
        f"http_client must be one of {wanted}, or a function that returns one, not"
        f" {kind.__module__}.{kind.__qualname__}"
    )


class _MadeTransport:
    """A transport over the clients that the app's function creates, one for each event loop."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._pool = LoopPool(lambda: _async_transport_over(make(), owned=True), _close)

    async def send(self, request: HTTPRequest) -> AsyncHTTPResponse:
        return await self._pool.get().send(request)

    async def close(self) -> None:
        await self._pool.close()


async def _close(what: Any) -> None:
    await what.close()
