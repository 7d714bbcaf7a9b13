"""A stream on its way through: what goes on to the client of what came from the service, event
by whole event, and what it tells of its cost. No I/O."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Literal

import msgspec

from .. import sse
from ..completions import Metering, metering
from ..errors import WattfareError, WattfareNetworkError
from ..sessions import logger
from ..types import TokenUsage, decode

Outcome = Literal["complete", "broken", "gone", "refused"]


class Record(msgspec.Struct):
    """What is known of one inference call: for the log, and for ``on_usage``.

    Attributes:
        outcome: ``gone`` while it is under way, and for ever where its client has left;
            ``refused``: it did not take place, and nothing can have been billed for it.
    """

    request_id: str
    user: str | None
    model: str | None
    status: int = 0
    outcome: Outcome = "gone"
    usage: TokenUsage | None = None
    cost_usd: Decimal | None = None

    def failed(self, error: WattfareError) -> None:
        """It failed before anything of it was passed on."""
        refused = 400 <= error.status < 500  # a 5xx may come from a proxy that lost patience
        never_sent = isinstance(error, WattfareNetworkError) and not error.sent
        self.status = error.http_status
        self.outcome = "refused" if refused or never_sent else "broken"

    def tell(self, told: Metering) -> None:
        """Take down what an answer said of its cost."""
        self.usage = told.usage or self.usage
        self.cost_usd = told.cost_usd if told.cost_usd is not None else self.cost_usd


class Relay:
    """A streamed answer on its way.

    Args:
        answer: the service's, its body still to come.
        headers: to answer with.
        record: is kept up to date with what the stream tells.
        hide_usage: take out the event that tells the usage, which we have asked for and the
            client has not.
    """

    def __init__(
        self, answer: Any, headers: dict[str, str], record: Record, *, hide_usage: bool = False
    ) -> None:
        self.answer = answer
        self.status: int = answer.status
        self.headers = headers
        self.record = record
        self._hide_usage = hide_usage
        self._splitter = sse.Splitter()
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """What goes on, now that this has come.

        Raises:
            WattfareError: ``upstream``; this is no event stream any more.
        """
        try:
            block = self._splitter.feed(data)
        except sse.EventTooLargeError as error:
            raise WattfareError(str(error), code="upstream", status=502) from None
        # The events are not parsed; only those that may tell something are looked into.
        if b'"usage"' in block:
            block = self._read_usage(block)
        if b"[DONE]" in block or b'"error"' in block:
            self._look_for_end(block)
        return block

    def end(self) -> bytes:
        """What goes on, now that all has come."""
        if not self._ended and self._splitter.rest:
            # A server may leave out the empty line behind the very last event.
            last = self._splitter.rest + b"\n\n"
            self._look_for_end(last)
            if self._ended:
                return last
        if self._ended:
            return b""
        return self.broken("it ended before its end")

    def broken(self, why: str) -> bytes:
        """What goes on, now that nothing more will come. Half an event is dropped."""
        if self._ended:
            return b""
        self._ended = True
        self.record.outcome = "broken"
        logger.warning("A stream broke off: %s. request_id=%s", why, self.record.request_id)
        return sse.write_error(
            WattfareError(f"The answer's stream broke off: {why}.", code="upstream", status=502)
        )

    def _read_usage(self, block: bytes) -> bytes:
        kept: list[bytes] = []
        cut = 0
        for start, end in sse.holding(block, _USAGE):
            for event in sse.events(block[start:end]):
                told = _metering(event.data)
                if told == Metering():
                    continue
                self.record.tell(told)
                if self._hide_usage and _tells_usage_only(event.data):
                    kept.append(block[cut:start])
                    cut = end
        return b"".join((*kept, block[cut:])) if cut else block

    def _look_for_end(self, block: bytes) -> None:
        for start, end in sse.holding(block, _END):
            for event in sse.events(block[start:end]):
                if sse.is_done(event.data):
                    self._ended = True
                    self.record.outcome = "complete"
                elif sse.error_in(event.data) is not None:
                    self._ended = True
                    self.record.outcome = "broken"


_USAGE = re.compile(rb'"usage"')
_END = re.compile(rb'\[DONE\]|"error"')


class _Told(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    error: Any = None


def _metering(data: bytes) -> Metering:
    try:
        return metering(data)
    except msgspec.MsgspecError:
        return Metering()


def _tells_usage_only(data: bytes) -> bool:
    try:
        told = decode(_Told, data)
    except msgspec.MsgspecError:
        return False
    return not told.choices and told.error is None
