"""The connections of the openai clients that one Wattfare client hands out.

All of its users share them: one HTTP client for each process, and one for each event loop.
"""

from __future__ import annotations

import weakref
from typing import Any

from .calls import Caller
from .transport import LoopPool, Pool


class OpenAIConnections:
    """The HTTP clients, each made when it is first needed. The openai package makes them, so that
    they are of the kind that this version of it takes.

    Attributes:
        caller: the service and the secret key.
        shared: gives the HTTP client of this process.
        shared_async: gives the HTTP client of the running event loop.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.shared: Pool[Any] = Pool(_connect, _close)
        self.shared_async: LoopPool[Any] = LoopPool(_connect_async, _close_async)
        # An openai client is always in a circle. Without this, the garbage collector could come
        # to a connection before it comes to what closes it.
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
