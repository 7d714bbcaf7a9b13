"""Relays a stream to the client event by event, and reads the usage and the cost in it. No I/O."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import msgspec

from .. import sse
from ..calls_at_once import Slot
from ..completions import Metering, metering, read_usage
from ..errors import WattfareError, WattfareNetworkError
from ..heartbeat import COMMENT
from ..logs import get_logger
from ..types import decode

logger = get_logger("wattfare_mw")

#: The minimum time between two comments that are passed on, in seconds.
COMMENT_SECONDS = 10.0

Outcome = Literal["complete", "broken", "gone", "refused"]
_NOTHING = Metering()


class Record(msgspec.Struct, gc=False):
    """The record of one inference call, for the log and for ``on_usage``.

    Attributes:
        begun: True once the call may cost money.
        outcome: the outcome of the call. It is ``gone`` while the call runs, and stays ``gone`` if
            the client leaves. It is ``refused`` if the call did not take place, so nothing was
            billed.
        slot: the call's slot, if concurrent calls are limited.
    """

    request_id: str = ""
    user: str | None = None
    model: str | None = None
    begun: bool = False
    status: int = 0
    outcome: Outcome = "gone"
    slot: Slot | None = None
    _reported: bytes | Metering = _NOTHING

    def release(self) -> None:
        """Release the slot. Further calls of this method do nothing."""
        if self.slot is not None:
            self.slot.release()

    def failed(self, error: WattfareError) -> None:
        """Record a failure that happened before anything was sent to the client."""
        refused = 400 <= error.status < 500  # after a 5xx of a proxy, the call may still run
        never_sent = isinstance(error, WattfareNetworkError) and not error.sent
        self.status = error.http_status
        self.outcome = "refused" if refused or never_sent else "broken"

    def set_usage(self, usage: bytes) -> None:
        """Record the usage in a whole answer. It is parsed only if it is needed."""
        self._reported = usage

    def add_usage(self, reported: Metering) -> None:
        """Record the usage in an event."""
        so_far = self.reported
        self._reported = Metering(
            reported.usage or so_far.usage,
            so_far.cost_usd if reported.cost_usd is None else reported.cost_usd,
        )

    @property
    def reported(self) -> Metering:
        """The usage and the cost that the answer has reported."""
        if not isinstance(self._reported, Metering):
            self._reported = read_usage(self._reported)
        return self._reported


class Relay:
    """A streamed answer that is being relayed.

    Args:
        answer: the service's answer with an unread body.
        headers: the headers for the client.
        record: the record of the call, which this class updates.
        read_usage: True to read the usage.
        hide_usage: True to remove the event with the usage, because only the middleware asked for
            it.
        comments: True to pass on the service's comments, but at most one per
            :data:`COMMENT_SECONDS`.
    """

    def __init__(
        self,
        answer: Any,
        headers: dict[str, str],
        record: Record,
        *,
        read_usage: bool = True,
        hide_usage: bool = False,
        comments: bool = True,
    ) -> None:
        self.answer = answer
        self.status: int = answer.status
        self.headers = headers
        self.record = record
        self._read_usage = read_usage
        self._hide_usage = hide_usage
        self._next_comment = -math.inf if comments else math.inf
        self._splitter = sse.Splitter()
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Add a chunk. Returns the bytes to send to the client.

        Raises:
            WattfareError: ``upstream``; the body is not an event stream.
        """
        try:
            block = self._splitter.feed(data)
        except sse.EventTooLargeError as error:
            raise WattfareError(str(error), code="upstream", status=502) from None
        if (
            len(block) > 6
            and block[6] == _BRACE  # data: {
            and block[0] != _COLON
            and _CR not in block
            and _LF not in block[:-2]
        ):
            # The usual case: one event of one line, not a comment, and not the last event.
            may_end = block.find(_ERROR) >= 0
        else:
            if sse.may_hold_comments(block):
                block = self._without_comments(block)
            may_end = block.find(_DONE) >= 0 or block.find(_ERROR) >= 0
        # Parse only events that may report usage. (`in` would take twice as long as `find`, because
        # it first checks for a number.)
        if self._read_usage and block.find(_USAGE) >= 0:
            block = self._without_usage(block)
        if may_end:
            self._look_for_end(block)
        return block

    def end(self) -> bytes:
        """Handle the end of the body. Returns the bytes to send to the client."""
        if not self._ended and self._splitter.rest:
            # A server may leave out the empty line after the last event.
            last = self._splitter.rest + b"\n\n"
            self._look_for_end(last)
            if self._ended:
                return last
        if self._ended:
            return b""
        return self.broken("it is incomplete")

    def broken(self, why: str) -> bytes:
        """Handle a broken stream. Returns the bytes to send to the client, without the incomplete
        event."""
        if self._ended:
            return b""
        self._ended = True
        self.record.outcome = "broken"
        logger.warning("A stream broke off: %s. request_id=%s", why, self.record.request_id)
        error = WattfareError(f"The stream broke off: {why}.", code="upstream", status=502)
        return sse.write_error(error, self.record.request_id)

    def heartbeat(self) -> bytes:
        """A comment from the middleware."""
        self._next_comment = time.monotonic() + COMMENT_SECONDS
        return COMMENT

    def _without_comments(self, block: bytes) -> bytes:
        kept: list[bytes] = []
        for event in sse.split(block):
            if sse.is_comment(event):
                now = time.monotonic()
                if now < self._next_comment:
                    continue
                self._next_comment = now + COMMENT_SECONDS
            kept.append(event)
        return b"".join(kept)

    def _without_usage(self, block: bytes) -> bytes:
        kept: list[bytes] = []
        cut = 0
        for start, end in sse.holding(block, _USAGE):
            for event in sse.events(block[start:end]):
                reported = _metering(event.data)
                if reported == _NOTHING:
                    continue
                self.record.add_usage(reported)
                if self._hide_usage and _holds_usage_only(event.data):
                    kept.append(block[cut:start])
                    cut = end
        return b"".join((*kept, block[cut:])) if cut else block

    def _look_for_end(self, block: bytes) -> None:
        for start, end in sse.holding(block, _DONE, _ERROR):
            for event in sse.events(block[start:end]):
                if sse.is_done(event.data):
                    self._ended = True
                    self.record.outcome = "complete"
                elif sse.error_in(event.data) is not None:
                    self._ended = True
                    self.record.outcome = "broken"


_LF, _CR, _COLON, _BRACE = b"\n\r:{"
_USAGE, _DONE, _ERROR = b'"usage"', b"[DONE]", b'"error"'


class _UsageChunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    error: Any = None


def _metering(data: bytes) -> Metering:
    try:
        return metering(data)
    except msgspec.MsgspecError:
        return _NOTHING


def _holds_usage_only(data: bytes) -> bool:
    try:
        reported = decode(_UsageChunk, data)
    except msgspec.MsgspecError:
        return False
    return not reported.choices and reported.error is None
