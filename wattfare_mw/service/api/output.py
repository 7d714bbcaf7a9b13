"""Sends the answer of an inference call to an ASGI server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.types import Send

from ... import sse
from .bodies import JSON

_JSON_TYPE = (b"content-type", JSON.encode())
_STREAM_HEADERS = (
    (b"content-type", sse.CONTENT_TYPE.encode()),
    (b"x-accel-buffering", b"no"),
)


class ASGIOutput:
    """Implements :class:`..inference.runner.Output`.

    Args:
        send: sends the head of the response. If it is a :class:`.framing.ResponseSender`, the body
            goes past it, directly to the server.
        headers: returns the headers to add. It is called when the head is sent.
    """

    def __init__(self, send: Send, headers: Callable[[], Sequence[tuple[bytes, bytes]]]) -> None:
        self._send = send
        self._headers = headers

    async def begin(self) -> None:
        """Send the head of an event stream. No proxy should cache or buffer it."""
        await self._start(_STREAM_HEADERS)

    async def write(self, block: bytes) -> None:
        """Send whole events."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end(self, block: bytes) -> None:
        """Send the last events, and end the stream."""
        await self._send({"type": "http.response.body", "body": block})

    async def json(self, body: bytes) -> None:
        """Send a whole answer."""
        await self._start((_JSON_TYPE, (b"content-length", b"%d" % len(body))))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        fields = [*headers, *self._headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})
        self._send = getattr(self._send, "server_send", self._send)
