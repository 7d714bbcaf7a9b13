"""The models of an upstream and their prices. They come from the upstream's own list, which is
refreshed regularly.

A call does not wait for a refresh. If a refresh fails, the last list stays valid for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from ...errors import invalid_request
from ...logs import describe, get_logger
from ...offload import LARGE_BODY, in_thread
from ..chat.price import Price
from ..errors import upstream_failed
from . import model_lists, output_limits, own_tools, upstream_json
from .output_limits import ModelLimits
from .own_prices import OwnPrices
from .price_lists import Unpriced, published, read_prices

log = get_logger("wattfare_mw.service", show_messages=False)

#: The age at which a list is refreshed, and at which it is no longer used, in seconds.
FRESH_SECONDS = 600
STALE_SECONDS = 24 * 3600
#: How long to wait after a failed refresh, in seconds.
RETRY_SECONDS = 10


class NoListError(Exception):
    """The upstream has no list of models, or none for this key."""


class _List(msgspec.Struct, frozen=True):
    """A list of models. ``body``: the list as received. None if the upstream has no list. Then any
    name may be a model, and only published prices are known."""

    read_at: float
    body: bytes | None
    prices: dict[str, Price | Unpriced]
    limits: dict[str, ModelLimits] = {}

    def find(self, models: Iterable[str]) -> Price | Unpriced | None:
        """The price of the first of these names that is in the list."""
        names = (name for model in models for name in model_lists.names_of(model))
        return next(filter(None, map(self.prices.get, names)), None)


class Catalog:
    """The models of one upstream.

    Args:
        fetch: returns the list as received; raises :class:`NoListError` if there is none.
        base_url: the provider's base URL. Its published prices are used if the list has no price.
        own_prices: the operator's prices, which override all others.
        default_first: True if the operator's price for ``*`` overrides a published price, as for an
            unknown upstream.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        base_url: str,
        own_prices: OwnPrices | None = None,
        *,
        default_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._base_url = base_url
        self._own = own_prices or OwnPrices()
        self._default_first = default_first
        self._clock = clock
        self._list: _List | None = None
        self._reading: asyncio.Task[_List] | None = None
        self._next_read = float("-inf")
        self._published: dict[str, Price | None] = {}

    async def body(self) -> bytes:
        """The upstream's own list, as ``{"data": [{"id": …}]}``; empty if the upstream has none.

        Raises:
            WattfareError: ``upstream``; the list cannot be read now.
        """
        body = (await self._read()).body
        return model_lists.NO_MODELS if body is None else body

    async def unpriced(self) -> tuple[int, list[str]]:
        """How many models the upstream lists, and the names of those without a fixed price.

        Raises:
            WattfareError: ``upstream``; the list cannot be read now.
        """
        names = list((await self._read()).prices)
        return len(names), [name for name in names if await self.price(name) is None]

    async def price(self, model: str, base: str | None = None) -> Price | None:
        """The price of this model; None if it has no fixed price.

        Args:
            base: the name without a variant, which is used if ``model`` itself is unknown.

        Raises:
            WattfareError: ``invalid_request`` if there is no such model; ``upstream`` if the list
                cannot be read.
        """
        names = (model,) if base in (None, model) else (model, base)
        own = next(filter(None, map(self._own.named, names)), None)
        default = self._own.default
        if own is not None:
            return own
        models = await self._read()
        listed = models.prices.get(model) or models.find(names)
        if isinstance(listed, Price):
            return own_tools.with_fee(base or model, listed)
        if listed is Unpriced.NOT_FIXED:
            return default
        if listed is None and models.body is not None:
            if default is None:
                raise invalid_request(
                    f"The upstream's list has no model {model!r}. If the model exists anyway, the "
                    "operator of the service can set a price with --price 'MODEL=IN/OUT'."
                )
            return default
        if default is not None and self._default_first:
            return default
        return await self._published_price(base or model, listed is not None) or default

    @property
    def fresh(self) -> object | None:
        """An object that identifies the current list. A refreshed list is another object. None if
        there is no list yet."""
        known = self._list
        if known is None or self._clock() >= known.read_at + FRESH_SECONDS:
            return None
        return known

    def limits(self, model: str) -> ModelLimits:
        """The limits of this model, from the current list or else from our table."""
        listed = {} if self._list is None else self._list.limits
        found = next(filter(None, map(listed.get, model_lists.names_of(model))), None)
        table = output_limits.known(model)
        if found is None:
            return table
        # A list may have only one of the two limits.
        return ModelLimits(found.output or table.output, found.context or table.context)

    async def _published_price(self, model: str, is_listed: bool) -> Price | None:
        if model in self._published:
            return self._published[model]
        # In a thread, because the first lookup takes a second to read the table of prices.
        price = await asyncio.to_thread(published, model_lists.bare(model), self._base_url)
        price = price and own_tools.with_fee(model, price)
        if price is not None or is_listed:  # clients can invent any number of names
            self._published[model] = price
        return price

    async def close(self) -> None:
        """Stop refreshing."""
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
            self._reading = asyncio.create_task(self._refresh())
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
            self._published.clear()  # a published price can change at a given date
        else:
            log.warning("the upstream's list of models cannot be read: %s", describe(error))

    async def _refresh(self) -> _List:
        try:
            body = await self._fetch()
            small = len(body) <= LARGE_BODY
            read = _read_list(body) if small else await in_thread(_read_list, body)
            body, prices, limits = read
            return _List(self._clock(), body, prices, limits)
        except (NoListError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if self._list is not None and self._list.body is not None:
                # The upstream had a list before, so this is probably temporary.
                raise upstream_failed("The upstream has no list of models.") from None
        log.warning("the upstream has no list of models: published prices are used")
        return _List(self._clock(), None, {})


def _read_list(
    body: bytes,
) -> tuple[bytes, dict[str, Price | Unpriced], dict[str, ModelLimits]]:
    upstream_json.check_size(body)
    body = model_lists.normalized(body)
    return body, read_prices(body), output_limits.read_limits(body)
