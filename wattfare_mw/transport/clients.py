"""The types of ``http_client``. They describe the methods of the libraries' clients, so that a type
checker does not need the libraries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol


class HttpxClient(Protocol):
    """An ``httpx.Client`` or an ``httpx2.Client``."""

    def build_request(self, method: str, url: Any) -> Any:
        """Make a request."""
        ...

    def send(self, request: Any, *, stream: bool = ...) -> Any:
        """Send it."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncHttpxClient(Protocol):
    """An ``httpx.AsyncClient`` or an ``httpx2.AsyncClient``."""

    def build_request(self, method: str, url: Any) -> Any:
        """Make a request."""
        ...

    async def send(self, request: Any, *, stream: bool = ...) -> Any:
        """Send it."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class AiohttpSession(Protocol):
    """An ``aiohttp.ClientSession``."""

    @property
    def connector(self) -> Any:
        """Its connections."""
        ...

    def request(self, method: str, url: Any) -> Any:
        """Make a request."""
        ...

    def close(self) -> Awaitable[None]:
        """Close the connections."""
        ...


SyncHTTPClient = HttpxClient | Callable[[], HttpxClient]
"""A client, or a function that creates one. A class of clients selects our own connections over its
library."""

_AsyncClient = AsyncHttpxClient | AiohttpSession
AsyncHTTPClient = _AsyncClient | Callable[[], _AsyncClient]
""":data:`SyncHTTPClient`, for asyncio."""
