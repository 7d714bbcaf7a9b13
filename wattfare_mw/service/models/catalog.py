"""Which models an upstream has, and what each costs: its own list, read now and then.

No call waits for a list that is being read anew, and none fails because it cannot be: the last
one is good for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from ...errors import WattfareError, invalid_request
from ...logs import describe, get_logger
from ..chat.price import Price
from . import upstream_answers
from .price_lists import Unpriced, published, read_prices

log = get_logger("wattfare_mw.service", show_messages=False)

#: How old a list may be before it is read anew, and before it is no longer used, in seconds.
FRESH_SECONDS = 600
STALE_SECONDS = 24 * 3600
#: How long to wait with the next attempt where one has failed, in seconds.
RETRY_SECONDS = 10


class _List(msgspec.Struct, frozen=True):
    """``body``: as it came; None where the upstream gives no list, so that any name may be a
    model's, and only what is published is known of it."""

    read_at: float
    body: bytes | None
    prices: dict[str, Price | Unpriced]


class Catalog:
    """The models of one upstream.

    Args:
        fetch: gives the list, as it comes; raises ``invalid_request`` where there is none.
        base_url: whose prices to look up where the list names none.
        clock: seconds.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        base_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._base_url = base_url
        self._clock = clock
        self._list: _List | None = None
        self._reading: asyncio.Task[_List] | None = None
        self._next_read = float("-inf")
        self._published: dict[str, Price | None] = {}

    async def body(self) -> bytes:
        """The upstream's own list.

        Raises:
            WattfareError: ``upstream``; it gives none.
        """
        body = (await self._read()).body
        if body is None:
            raise _none()
        return body

    async def price(self, model: str) -> Price | None:
        """What this model costs; None where it has no fixed price.

        Raises:
            WattfareError: ``invalid_request``: there is no such model; ``upstream``.
        """
        models = await self._read()
        listed = models.prices.get(model)
        if isinstance(listed, Price):
            return listed
        if listed is Unpriced.NOT_FIXED:
            return None
        if listed is None and models.body is not None:
            raise invalid_request(f"The upstream lists no model {model!r}.")
        if model in self._published:
            return self._published[model]
        # In a thread: the table of prices takes a second to read, once.
        price = await asyncio.to_thread(published, model, self._base_url)
        if price is not None or listed is not None:  # names can be made up without end
            self._published[model] = price
        return price

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def _read(self) -> _List:
        now = self._clock()
        known = self._list
        if known is not None and now < known.read_at + FRESH_SECONDS:
            return known
        usable = known is not None and now < known.read_at + STALE_SECONDS
        if self._reading is None and (now >= self._next_read or not usable):
            self._reading = asyncio.create_task(self._read_anew())
            self._reading.add_done_callback(self._done)
        if known is not None and usable:
            return known
        assert self._reading is not None
        return await asyncio.shield(self._reading)

    def _done(self, reading: asyncio.Task[_List]) -> None:
        self._reading = None
        self._next_read = self._clock() + RETRY_SECONDS
        if reading.cancelled():
            return
        error = reading.exception()
        if error is None:
            self._list = reading.result()
            self._published.clear()  # a published price can change at a date
        else:
            log.warning("the upstream's list of models cannot be read: %s", describe(error))

    async def _read_anew(self) -> _List:
        try:
            body = await self._fetch()
        except WattfareError as error:
            if error.code != "invalid_request":
                raise
            # It is not the client's request that was refused.
            if self._list is not None and self._list.body is not None:
                raise _none() from None  # what has been there is not gone for good
            return _List(self._clock(), None, {})
        try:
            return _List(self._clock(), body, read_prices(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise upstream_answers.failed("The upstream's list of models is not one.") from None


def _none() -> WattfareError:
    return upstream_answers.failed("The upstream gives no list of models.")
