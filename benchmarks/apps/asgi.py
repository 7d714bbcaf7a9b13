"""The middleware around a trivial ASGI app, over each client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers import clients
from benchmarks.peers.asgi import lifespan
from wattfare_mw import AsyncWattfare, WattfareMiddleware

from .users import signed_in_user, signed_in_user_async

_HEAD = [(b"content-type", b"text/plain"), (b"content-length", b"2")]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers without looking."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """Does nothing at all."""


def wrapped(make_client: Callable[[], Any] | None = None, *, sync_user: bool = False) -> Any:
    client = AsyncWattfare(
        clients.SECRET_KEY, base_url=clients.UPSTREAM, http_client=make_client, timeout=600
    )
    resolve_user = signed_in_user if sync_user else signed_in_user_async
    return WattfareMiddleware(hello, resolve_user=resolve_user, client=client)


def over_aiohttp() -> Any:
    """As it is where aiohttp is installed."""
    return wrapped()


def over_aiohttp_sync_user() -> Any:
    """The same with a ``resolve_user`` that is not asynchronous, and so runs in a thread."""
    return wrapped(sync_user=True)


def over_httpx() -> Any:
    """As it is where aiohttp is not installed."""
    import httpx

    return wrapped(httpx.AsyncClient)


def over_httpx2() -> Any:
    import httpx2

    return wrapped(httpx2.AsyncClient)


def over_injected_httpx() -> Any:
    """Over a client of the app's, made as the bare pass-through's is."""
    return wrapped(clients.httpx_async_client)


def over_injected_httpx2() -> Any:
    return wrapped(clients.httpx2_async_client)
