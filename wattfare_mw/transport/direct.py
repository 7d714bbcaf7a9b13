"""A fast path through aiohttp. It uses aiohttp's connections and its parser, but not its session.
The session handles redirects, cookies, middlewares and forms, which our calls do not need. It takes
two thirds of the time of a call.

The fast path uses internals of aiohttp, so it runs only with the versions of aiohttp that our tests
use. With other versions, the transport uses the session.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import yarl
from aiohttp.client_reqrep import ConnectionKey

from .base import HTTPRequest

#: The supported versions of aiohttp: the first one, and the one after the last.
FITTING = ((3, 13), (3, 15))
# For a body of up to this many bytes, one write of the headers and the body is faster than two.
_JOINED = 2**14


def fits(version: str) -> bool:
    """True if the fast path supports this version of aiohttp."""
    match = re.match(r"(\d+)\.(\d+)\.", version)
    return match is not None and FITTING[0] <= (int(match[1]), int(match[2])) < FITTING[1]


class _Target(aiohttp.ClientRequest):
    """The address to connect to, in the form that aiohttp's connector needs."""

    _key: ConnectionKey | None = None

    @property
    def connection_key(self) -> ConnectionKey:
        if self._key is None:
            self._key = super().connection_key
        return self._key


class Direct:
    """The fast path for the calls of one session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._targets: dict[str, _Target] = {}

    async def send(self, request: HTTPRequest, limits: aiohttp.ClientTimeout) -> Sent:
        """Send a request. The body is written in one piece.

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
        if len(self._targets) > 64:  # one entry per service: an app has few
            self._targets.clear()
        target = _Target(
            "POST", yarl.URL(url, encoded=True), loop=self._loop, session=self._session
        )
        return self._targets.setdefault(url, target)


class Sent:
    """A sent request whose answer has not arrived."""

    __slots__ = ("connection", "protocol")

    def __init__(self, connection: Any, protocol: Any) -> None:
        self.connection = connection
        self.protocol = protocol

    async def head(self) -> tuple[Any, Any]:
        """The answer's headers, and its body as aiohttp's stream.

        Raises:
            aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError: there is no answer.
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
            # The service answered before it had read the whole request, so the connection cannot be
            # reused.
            self.connection.close()
        else:
            self.connection.release()

    def close(self) -> None:
        """Release the connection, unless the end of the answer has already released it."""
        self.connection.close()


def _write(transport: Any, request: HTTPRequest, url: yarl.URL) -> None:
    body = request.body or b""
    head = _head(request, url, len(body))
    if len(body) <= _JOINED:
        transport.write(head + body)
    else:
        transport.writelines((head, body))


def _head(request: HTTPRequest, url: yarl.URL, length: int) -> bytes:
    # A separate function, because its local variables have the unmasked secret key.
    lines = [
        f"{request.method} {url.raw_path_qs} HTTP/1.1",
        f"host: {url.host_port_subcomponent}",
        f"content-length: {length}",
        *[f"{name}: {value}" for name, value in request.headers.items()],
        "\r\n",
    ]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) or head.count("\r") != len(lines):
        raise ValueError("a header has a line end")
    return head.encode()
