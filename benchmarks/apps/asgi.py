"""The middleware around a minimal ASGI app, with each HTTP client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers import clients
from benchmarks.peers.asgi import lifespan
from wattfare_mw import AsyncWattfare, WattfareMiddleware

from .users import signed_in_user, signed_in_user_async

_HEAD = [(b"content-type", b"text/plain"), (b"content-length", b"2")]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer without reading the request."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """Return without an answer."""


def wrapped(make_client: Callable[[], Any] | None = None, *, sync_user: bool = False) -> Any:
    client = AsyncWattfare(
        clients.SECRET_KEY, base_url=clients.UPSTREAM, http_client=make_client, timeout=600
    )
    resolve_user = signed_in_user if sync_user else signed_in_user_async
    return WattfareMiddleware(hello, resolve_user=resolve_user, client=client)


def over_aiohttp() -> Any:
    """The middleware with its own client, if aiohttp is installed."""
    return wrapped()


def over_aiohttp_sync_user() -> Any:
    """The same with a sync ``resolve_user``, which runs in a thread."""
    return wrapped(sync_user=True)


def over_httpx() -> Any:
    """The middleware with its own client, if aiohttp is not installed."""
    import httpx

    return wrapped(httpx.AsyncClient)


def over_httpx2() -> Any:
    import httpx2

    return wrapped(httpx2.AsyncClient)


def over_injected_httpx() -> Any:
    """The middleware with a client of the app. It has the settings of the bare pass-through's
    client."""
    return wrapped(clients.httpx_async_client)


def over_injected_httpx2() -> Any:
    return wrapped(clients.httpx2_async_client)
