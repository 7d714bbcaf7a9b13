"""The short way through aiohttp: its connections and its parser, without what its session does
for each request and ours never need (redirects, cookies, middlewares, forms, a task for each
body), which is two thirds of what a call costs.

It stands on what aiohttp has between its parts and promises to nobody, so that it is taken with
those versions only that our tests have run with; with any other, the session is asked.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import yarl
from aiohttp.client_reqrep import ConnectionKey

from .base import HTTPRequest

#: The versions of aiohttp, from the first to below the last.
FITTING = ((3, 13), (3, 15))
# To copy a body of no more bytes behind its head takes less than to hand over two pieces.
_JOINED = 2**14


def fits(version: str) -> bool:
    """Is this a version of aiohttp with which the short way is known?"""
    match = re.match(r"(\d+)\.(\d+)\.", version)
    return match is not None and FITTING[0] <= (int(match[1]), int(match[2])) < FITTING[1]


class _Target(aiohttp.ClientRequest):
    """Where to connect to, as a connector wants to be told it."""

    _key: ConnectionKey | None = None

    @property
    def connection_key(self) -> ConnectionKey:
        if self._key is None:
            self._key = super().connection_key
        return self._key


class Direct:
    """The short way to the services that one session calls."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._targets: dict[str, _Target] = {}

    async def send(self, request: HTTPRequest, limits: aiohttp.ClientTimeout) -> Sent:
        """Send a request, whose body is written at once.

        Raises:
            aiohttp.ClientError, OSError: it could not be sent.
        """
        target = self._targets.get(request.url)
        if target is None:
            target = self._target(request.url)
        try:
            connection = await self._session.connector.connect(target, [], limits)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("It took too long to connect.") from error
        try:
            protocol = connection.protocol
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            transport = protocol.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("The connection is closing.")
            _write(transport, request, target.url)
        except BaseException:
            connection.close()
            raise
        return Sent(connection, protocol)

    def _target(self, url: str) -> _Target:
        if len(self._targets) > 64:  # one for each call there is; an app has few services
            self._targets.clear()
        target = _Target(
            "POST", yarl.URL(url, encoded=True), loop=self._loop, session=self._session
        )
        return self._targets.setdefault(url, target)


class Sent:
    """A request that has been sent, and whose answer is on its way."""

    __slots__ = ("connection", "protocol")

    def __init__(self, connection: Any, protocol: Any) -> None:
        self.connection = connection
        self.protocol = protocol

    async def head(self) -> tuple[Any, Any]:
        """The answer's head, and its body as aiohttp's stream.

        Raises:
            aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError: none comes.
        """
        try:
            message, content = await self.protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await self.protocol.read()
        except BaseException:
            self.connection.close()
            raise
        content.on_eof(self._ended)
        return message, content

    def _ended(self) -> None:
        transport = self.protocol.transport
        if transport is not None and transport.get_write_buffer_size():
            # It answered without having read all of the request: nobody knows what it would take
            # the rest for.
            self.connection.close()
        else:
            self.connection.release()

    def close(self) -> None:
        """Let go of the connection: nothing, where the answer has ended and it is free already."""
        self.connection.close()


def _write(transport: Any, request: HTTPRequest, url: yarl.URL) -> None:
    body = request.body or b""
    head = _head(request, url, len(body))
    if len(body) <= _JOINED:
        transport.write(head + body)
    else:
        transport.writelines((head, body))


def _head(request: HTTPRequest, url: yarl.URL, length: int) -> bytes:
    # In a frame of its own: it holds the secret key as it is.
    lines = [
        f"{request.method} {url.raw_path_qs} HTTP/1.1",
        f"host: {url.host_port_subcomponent}",
        f"content-length: {length}",
        *[f"{name}: {value}" for name, value in request.headers.items()],
        "\r\n",
    ]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) or head.count("\r") != len(lines):
        raise ValueError("a header holds a line end")
    return head.encode()
