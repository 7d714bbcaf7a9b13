"""Sends the answer of an inference call to an ASGI server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.types import Send

from ... import sse
from ...heartbeat import COMMENT, Heartbeat
from ...offload import LARGE_BODY
from ...transport.idle import NEVER, IdleTimer
from .bodies import JSON

_JSON_TYPE = (b"content-type", JSON.encode())
_STREAM_HEADERS = (
    (b"content-type", sse.CONTENT_TYPE.encode()),
    (b"x-accel-buffering", b"no"),
)

#: After how many seconds without an event a stream gets a comment.
HEARTBEAT_SECONDS = 15.0


class ASGIOutput:
    """Implements :class:`..inference.runner.Output`.

    Args:
        send: sends the start of the response. If it is a :class:`.framing.ResponseSender`, the body
            bypasses it.
        headers: returns the headers to add. It is called at the start of the response.
        heartbeats: the timer for comments in streams without events.
    """

    def __init__(
        self,
        send: Send,
        headers: Callable[[], Sequence[tuple[bytes, bytes]]],
        heartbeats: IdleTimer,
    ) -> None:
        self._send = send
        self._headers = headers
        self._heartbeats = heartbeats
        self._heartbeat: Heartbeat | None = None

    async def begin(self) -> None:
        """Send the headers of an event stream. They ask proxies not to cache or buffer it."""
        await self._start(_STREAM_HEADERS)
        self._heartbeat = Heartbeat(self._heartbeats, self._comment)

    async def write(self, block: bytes) -> None:
        """Send complete events."""
        heartbeat = self._heartbeat
        assert heartbeat is not None
        heartbeat.since = NEVER
        if heartbeat.sending is not None:
            await heartbeat.sent()
        await self._send({"type": "http.response.body", "body": block, "more_body": True})
        heartbeat.since = heartbeat.now()

    async def _comment(self) -> None:
        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def end(self, block: bytes) -> None:
        """Send the last events, and end the stream."""
        if self._heartbeat is not None:
            await self._heartbeat.stop()
        await self._send({"type": "http.response.body", "body": block})

    def close(self) -> None:
        """Stop sending."""
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.close()

    async def json(self, body: bytes) -> None:
        """Send a whole answer."""
        await self._start((_JSON_TYPE, (b"content-length", b"%d" % len(body))))
        if len(body) > LARGE_BODY:
            # A server accepts this body at once, but accepts the next message only after the client
            # has read the body. So the call counts as long as its answer is in memory.
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        fields = [*headers, *self._headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})
        self._send = getattr(self._send, "server_send", self._send)
