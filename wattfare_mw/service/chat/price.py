"""What a model costs. The bound of a call and its bill come from the same price."""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property

import msgspec

from ... import money

#: The most that one call may reserve (nano-dollars), so that sums fit into the database's integers.
MAX_RESERVATION = 10**15

_ZERO = Decimal(0)


class Price(msgspec.Struct, frozen=True, dict=True):
    """What a model costs, in USD: for one token, and for each request.

    ``dearest_*``: the highest rate at which the tokens of that side can come (a cache being
    written, reasoning, a long context), for a bound that holds.
    """

    prompt: Decimal
    completion: Decimal
    request: Decimal = _ZERO
    dearest_prompt: Decimal | None = None
    dearest_completion: Decimal | None = None

    def cost(self, prompt: int, completion: int) -> int:
        """What so many tokens cost, in nano-dollars, rounded up."""
        return self._rates.cost(prompt, completion)

    def cost_of_more(self, completion: int) -> int:
        """What so many more tokens of an answer cost, in nano-dollars, rounded up."""
        return self._rates.cost_of_more(completion)

    def bound(self, prompt: int, completion: int) -> int:
        """What so many tokens can cost at most, in nano-dollars."""
        return self._dearest.cost(prompt, completion)

    def pays_for(self, granted: int, prompt: int, answers: int, most: int) -> int:
        """The limit, up to ``most``, that each of so many answers can have for this amount."""
        tokens = self._dearest.tokens_for(granted, prompt)
        return most if tokens is None else min(max(tokens, 0) // answers, most)

    def tokens_for(self, granted: int, prompt: int) -> int | None:
        """How many tokens of an answer this amount pays for, at what they do cost; -1: none, and
        not the prompt; None: any number."""
        return self._rates.tokens_for(granted, prompt)

    @cached_property
    def _rates(self) -> money.Rates:
        return money.Rates(self.prompt, self.completion, self.request)

    @cached_property
    def _dearest(self) -> money.Rates:
        return money.Rates(
            max(self.prompt, self.dearest_prompt or _ZERO),
            max(self.completion, self.dearest_completion or _ZERO),
            self.request,
        )
