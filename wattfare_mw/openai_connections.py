"""Private: the connections of the openai clients that a Wattfare client creates.

Its users share them: one HTTP client for each process, and one for each event loop.
"""

from __future__ import annotations

import weakref
from typing import Any

from .calls import Caller
from .transport import LoopPool, Pool


class OpenAIConnections:
    """The HTTP clients, each created on first use. The openai package creates them, so its version
    accepts them.

    Attributes:
        caller: the service and the secret key.
        shared: the pool with the HTTP client of this process.
        shared_async: the pool with the HTTP clients of the event loops.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.shared: Pool[Any] = Pool(_connect, _close)
        self.shared_async: LoopPool[Any] = LoopPool(_connect_async, _close_async)
        # An openai client is always in a reference cycle. Without this, the garbage collector could
        # collect a connection before the object that closes it.
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
