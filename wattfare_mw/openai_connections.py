"""Private: the connections of the openai clients that a Wattfare client creates.

All users of the Wattfare client share them. There is one sync HTTP client for each process, and one
async HTTP client for each event loop.
"""

from __future__ import annotations

import weakref
from typing import Any

from .calls import Caller
from .transport import LoopPool, Pool


class OpenAIConnections:
    """The HTTP clients. Each is created on first use by the openai package, so it fits the
    installed version of that package.

    Attributes:
        caller: the service and the secret key.
        shared: the pool of the sync HTTP client.
        shared_async: the pool of the async HTTP clients.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.shared: Pool[Any] = Pool(_connect, _close)
        self.shared_async: LoopPool[Any] = LoopPool(_connect_async, _close_async)
        # An openai client is always part of a reference cycle. Without this finalizer, the garbage
        # collector could collect a connection before the object that closes it.
        weakref.finalize(self, self.shared.close).atexit = False


def _connect() -> Any:
    from .integrations.openai import http_client

    return http_client()


def _connect_async() -> Any:
    from .integrations.openai import async_http_client

    return async_http_client()


def _close(client: Any) -> None:
    client.close()


async def _close_async(client: Any) -> None:
    await client.aclose()
