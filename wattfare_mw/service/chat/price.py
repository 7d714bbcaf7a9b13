"""The price of a model. Both the bound and the bill of a call use it."""

from __future__ import annotations

from datetime import datetime, time
from decimal import Decimal
from functools import cached_property

import msgspec

from ... import money
from .usage import COMPLETION_PARTS, PROMPT_PARTS, TokenCounts

#: The maximum reservation of one call, in nano-dollars, so that sums fit into the database's
#: integers.
MAX_RESERVATION = 10**15
#: The service tiers that cost more than the usual tier. Bounds ignore them, because a call that
#: asks for one of them has no bound, and holds an amount instead.
EXPENSIVE_TIERS = frozenset({"priority", "fast"})


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The price of each kind of token, in USD per token; None if it has no separate price.

    Attributes:
        prompt: a token of the prompt.
        completion: a token of the answer.
        cache_read: a token of the prompt that is read from a cache.
        cache_write, cache_write_1h: a token that is written to a cache, for minutes or for an hour.
        audio, audio_cache_read, image: a token of audio or of an image.
        reasoning, audio_output, image_output: a token of the answer of this kind.
        request: the fee for each request, in USD.
        search: the fee for each web search, in USD.
        per_image: the fee for each image of the prompt, in USD, in addition to its tokens.
    """

    prompt: Decimal | None = None
    completion: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    audio: Decimal | None = None
    audio_cache_read: Decimal | None = None
    image: Decimal | None = None
    reasoning: Decimal | None = None
    audio_output: Decimal | None = None
    image_output: Decimal | None = None
    request: Decimal | None = None
    search: Decimal | None = None
    per_image: Decimal | None = None


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """Other rates under a condition. A rate of None does not change.

    Attributes:
        rates: the rates that change.
        min_prompt: for prompts of at least this many tokens.
        window: the start and the end of a period of the day, in UTC; None for the whole day.
        tier: for calls in this service tier; None for all calls.
    """

    rates: Rates
    min_prompt: int = 0
    window: tuple[time, time] | None = None
    tier: str | None = None

    def applies(self, prompt: int, moment: datetime | None, tier: str | None = None) -> bool:
        """True if the override applies to a prompt of this length, at this time (UTC), in this
        tier."""
        if prompt < self.min_prompt or self.tier not in (None, tier):
            return False
        if self.window is None:
            return True
        if moment is None:
            return False
        start, end = self.window
        now = moment.time()
        return start <= now < end if start <= end else now >= start or now < end


class Price(msgspec.Struct, frozen=True, dict=True):
    """What a model costs.

    Attributes:
        rates: the rates. ``prompt`` and ``completion`` are always set.
        overrides: other rates under conditions. A later override takes precedence.
        discount: the fraction of each bill that the provider does not charge, from 0 to 1. A bound
            ignores it.
    """

    rates: Rates
    overrides: tuple[Override, ...] = ()
    discount: Decimal = Decimal(0)

    @classmethod
    def flat(cls, prompt: Decimal, completion: Decimal, request: Decimal | None = None) -> Price:
        """A price with one rate for the prompt and one for the answer, in USD per token."""
        return cls(Rates(prompt=prompt, completion=completion, request=request))

    def cost(
        self, used: TokenCounts, moment: datetime | None = None, tier: str | None = None
    ) -> int:
        """The cost of these tokens, in nano-dollars, rounded up once.

        Args:
            moment: when the call began (UTC), for a price that depends on the time of the day.
            tier: the service tier, for a price that depends on it.
        """
        return self._table(used.prompt, moment, tier).cost(used)

    def cost_of_more(
        self,
        completion: int,
        prompt: int,
        moment: datetime | None = None,
        tier: str | None = None,
    ) -> int:
        """The cost of additional tokens of an answer, in nano-dollars, rounded up."""
        return self._table(prompt, moment, tier).cost_of_more(completion)

    def bound(self, prompt: int | TokenCounts, completion: int, searches: int = 0) -> int:
        """The maximum cost of a call with at most these tokens, in nano-dollars.

        Args:
            prompt: the tokens of the prompt. A plain number means that all of them are text. In
                ``TokenCounts``, the counts ``audio``, ``image`` and ``images`` are not text.
        """
        if isinstance(prompt, int):
            prompt = TokenCounts(prompt=prompt)
        return self._most_expensive(prompt.prompt).cost_with(prompt, completion, searches)

    def bounds(self, prompt: TokenCounts, least: int, most: int) -> tuple[int, int]:
        """The bounds with the fewest and with the most tokens of an answer."""
        return self._most_expensive(prompt.prompt).costs_with(prompt, least, most)

    def pays_for(self, granted: int, prompt: int | TokenCounts, answers: int, most: int) -> int:
        """The token limit per answer that this amount pays for, at most ``most``."""
        counts = _counts(prompt)
        tokens = self._most_expensive(counts.prompt).tokens_for(granted, counts)
        return most if tokens is None else min(max(tokens, 0) // answers, most)

    def tokens_for(
        self, granted: int, prompt: int | TokenCounts, moment: datetime | None = None
    ) -> int | None:
        """The number of answer tokens that this amount pays for; -1 if it does not pay for the
        prompt, None for any number."""
        counts = _counts(prompt)
        return self._table(counts.prompt, moment).tokens_for(granted, counts)

    def most_per_unit(self, prompt: int) -> Rates:
        """The highest rates for a prompt of up to this many tokens. ``prompt``, ``completion``,
        ``request``, ``search`` and ``per_image`` are always set."""
        return self._highest(self._within(prompt))

    def _within(self, prompt: int) -> tuple[int, ...]:
        """The overrides that can apply to a prompt of up to this length, without those for
        :data:`EXPENSIVE_TIERS`."""
        return tuple(
            place
            for place, each in enumerate(self.overrides)
            if each.min_prompt <= prompt and each.tier not in EXPENSIVE_TIERS
        )

    def _table(self, prompt: int, moment: datetime | None, tier: str | None = None) -> _Table:
        if not self.overrides:
            return self._base
        return self._cached(
            False,
            tuple(
                place
                for place, each in enumerate(self.overrides)
                if each.applies(prompt, moment, tier)
            ),
        )

    def _most_expensive(self, prompt: int) -> _Table:
        if not self.overrides:
            return self._most_expensive_base
        return self._cached(True, self._within(prompt))

    @cached_property
    def _base(self) -> _Table:
        return self._cached(False, ())

    @cached_property
    def _most_expensive_base(self) -> _Table:
        return self._cached(True, ())

    @cached_property
    def _tables(self) -> dict[tuple[bool, tuple[int, ...]], _Table]:
        return {}

    def _cached(self, most_expensive: bool, overrides: tuple[int, ...]) -> _Table:
        key = most_expensive, overrides
        table = self._tables.get(key)
        if table is None:
            if most_expensive:
                table = _Table(self._highest(overrides))
            else:
                table = _Table(self._merged(overrides), 1 - self.discount)
            self._tables[key] = table
        return table

    def _merged(self, overrides: tuple[int, ...]) -> Rates:
        rates = self.rates
        for place in overrides:
            rates = _over(rates, self.overrides[place].rates)
        return rates

    def _highest(self, overrides: tuple[int, ...]) -> Rates:
        """The highest rate that a token of the prompt can have, and the highest rate of the
        answer."""
        all_rates = [self.rates, *(self.overrides[place].rates for place in overrides)]

        def most(*names: str) -> Decimal:
            given = (getattr(rates, name) for rates in all_rates for name in names)
            return max((rate for rate in given if rate is not None), default=Decimal(0))

        return Rates(
            # The rates of audio and images do not count here. Otherwise, a prompt of only text
            # would reserve their price.
            prompt=most("prompt", *_OF_TEXT),
            audio=most("prompt", *_OF_TEXT, *_OF_AUDIO),
            audio_cache_read=most("prompt", *_OF_TEXT, *_OF_AUDIO),
            image=most("prompt", *_OF_TEXT, "image"),
            completion=most("completion", *COMPLETION_PARTS),
            request=most("request"),
            search=most("search"),
            per_image=most("per_image"),
        )


_OF_AUDIO = ("audio", "audio_cache_read")
_OF_TEXT = tuple(name for name in PROMPT_PARTS if name not in (*_OF_AUDIO, "image"))


def _counts(prompt: int | TokenCounts) -> TokenCounts:
    return TokenCounts(prompt=prompt) if isinstance(prompt, int) else prompt


def _over(rates: Rates, changed: Rates) -> Rates:
    changes = {
        name: value
        for name in Rates.__struct_fields__
        if (value := getattr(changed, name)) is not None
    }
    return msgspec.structs.replace(rates, **changes)


#: The rate that replaces a missing one, for each kind of token.
_OTHERWISE = {
    "cache_read": "prompt",
    "cache_write": "prompt",
    "cache_write_1h": "cache_write",
    "audio": "prompt",
    "audio_cache_read": "cache_read",
    "image": "prompt",
    "reasoning": "completion",
    "audio_output": "completion",
    "image_output": "completion",
}


class _Table:
    """Rates as integers of a common unit. So a cost is exact, and takes only a few
    multiplications."""

    __slots__ = (
        "_completion",
        "_image",
        "_parts",
        "_prompt",
        "_request",
        "_search",
        "_unit",
    )

    def __init__(self, rates: Rates, factor: Decimal = Decimal(1)) -> None:
        full = {name: getattr(rates, name) for name in Rates.__struct_fields__}
        for name, other in _OTHERWISE.items():
            if full[name] is None:
                full[name] = full[other]
        zero = Decimal(0)
        prices = {name: rate or zero for name, rate in full.items()}
        self._unit, units = money.in_whole_units(prices, factor)
        self._prompt, self._completion = units["prompt"], units["completion"]
        self._request, self._search = units["request"], units["search"]
        self._image = units["per_image"]
        # The difference between the rate of a part and the rate of the prompt or the answer.
        self._parts = tuple(
            (name, units[name] - side)
            for names, side in ((PROMPT_PARTS, self._prompt), (COMPLETION_PARTS, self._completion))
            for name in names
            if units[name] != side
        )

    def cost(self, used: TokenCounts) -> int:
        return -(-self._units(used) // self._unit)

    def cost_with(self, used: TokenCounts, completion: int, searches: int) -> int:
        """The cost of these tokens, plus tokens of an answer and searches."""
        units = self._units(used) + completion * self._completion + searches * self._search
        return -(-units // self._unit)

    def _units(self, used: TokenCounts) -> int:
        units = used.prompt * self._prompt + used.completion * self._completion + self._request
        if used.searches:
            units += used.searches * self._search
        if used.images:
            units += used.images * self._image
        for name, difference in self._parts:
            units += getattr(used, name) * difference
        return units

    def costs_with(self, used: TokenCounts, least: int, most: int) -> tuple[int, int]:
        """The cost of these tokens, plus the fewest and plus the most tokens of an answer."""
        units, rate, unit = self._units(used), self._completion, self._unit
        return -(-(units + least * rate) // unit), -(-(units + most * rate) // unit)

    def cost_of_more(self, completion: int) -> int:
        return -(-completion * self._completion // self._unit)

    def tokens_for(self, nanos: int, prompt: TokenCounts) -> int | None:
        left = nanos * self._unit - self._units(prompt)
        if left < 0:
            return -1
        return left // self._completion if self._completion else None
