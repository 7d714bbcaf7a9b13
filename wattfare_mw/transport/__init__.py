"""The little an HTTP client must do for us, and httpx, httpx2 and aiohttp behind it.

All of them behave alike here: proxies and certificates come from the environment, no redirect is
followed, no cookie is kept or sent, nothing is decompressed, a stream has no total time limit,
and each event loop and each process has a pool of its own. What fails becomes a
:class:`~wattfare_mw.errors.WattfareNetworkError` that says whether the request can have arrived.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from . import over_httpx
from .base import (
    Answer,
    AsyncAnswer,
    AsyncTransport,
    HTTPRequest,
    LoopPool,
    Pool,
    Secret,
    Transport,
)

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncTransport",
    "HTTPRequest",
    "Secret",
    "Transport",
    "async_transport",
    "sync_transport",
]


def sync_transport(http_client: Any = None) -> Transport:
    """A transport over ``http_client``: an ``httpx.Client``, an ``httpx2.Client``, a function
    that makes one, or None for one of our own.

    Raises:
        TypeError: it is none of these.
    """
    if http_client is None:
        return over_httpx.HttpxTransport(Pool(over_httpx.own_client, owned=True))
    if _is_a(http_client, "httpx", "Client") or _is_a(http_client, "httpx2", "Client"):
        return over_httpx.HttpxTransport(Pool(lambda: http_client, owned=False))
    if _is_a_client(http_client) or not callable(http_client):
        raise _wrong_kind(http_client, "an httpx.Client or an httpx2.Client")

    def make() -> Any:
        client = http_client()
        if not (_is_a(client, "httpx", "Client") or _is_a(client, "httpx2", "Client")):
            raise _wrong_kind(client, "a function that gives an httpx.Client or an httpx2.Client")
        return client

    return over_httpx.HttpxTransport(Pool(make, owned=True))


def async_transport(http_client: Any = None) -> AsyncTransport:
    """A transport over ``http_client``: an ``httpx.AsyncClient``, an ``httpx2.AsyncClient``, an
    ``aiohttp.ClientSession``, a function that makes one, or None for one of our own: aiohttp's
    where aiohttp is installed, else httpx's.

    Raises:
        TypeError: it is none of these.
    """
    if http_client is None:
        if importlib.util.find_spec("aiohttp") is None:
            return over_httpx.AsyncHttpxTransport(LoopPool(over_httpx.own_async_client, owned=True))
        from . import over_aiohttp

        pool = LoopPool(over_aiohttp.own_session, owned=True)
        return over_aiohttp.AiohttpTransport(pool, own=True)
    if not _is_a_client(http_client) and callable(http_client):
        return _MadeTransport(http_client)
    return _async_transport_over(http_client, owned=False)


def _async_transport_over(client: Any, *, owned: bool) -> AsyncTransport:
    if _is_a(client, "httpx", "AsyncClient") or _is_a(client, "httpx2", "AsyncClient"):
        return over_httpx.AsyncHttpxTransport(LoopPool(lambda: client, owned=owned))
    if _is_a(client, "aiohttp", "ClientSession"):
        from . import over_aiohttp

        return over_aiohttp.AiohttpTransport(LoopPool(lambda: client, owned=owned))
    kinds = "an httpx.AsyncClient, an httpx2.AsyncClient or an aiohttp.ClientSession"
    raise _wrong_kind(client, kinds)


def _is_a(value: Any, module: str, name: str) -> bool:
    # A client of a library that nobody has imported cannot be here: nothing need be imported.
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _is_a_client(value: Any) -> bool:
    pairs = [(m, n) for m in ("httpx", "httpx2") for n in ("Client", "AsyncClient")]
    return any(_is_a(value, m, n) for m, n in [*pairs, ("aiohttp", "ClientSession")])


def _wrong_kind(value: object, wanted: str) -> TypeError:
    kind: type[object] = type(value)
    return TypeError(f"http_client must be {wanted}, not {kind.__module__}.{kind.__qualname__}")


class _MadeTransport:
    """Over whatever client the app's function makes: one for each event loop."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._pool = LoopPool(lambda: _async_transport_over(make(), owned=True), owned=True)

    async def send(self, request: HTTPRequest) -> AsyncAnswer:
        return await self._pool.get().send(request)

    async def close(self) -> None:
        transport = self._pool.take()
        if transport is not None:
            await transport.close()
