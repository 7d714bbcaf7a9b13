"""What a call has cost so far: counted as it passes, or as the upstream's usage says."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import msgspec

from .. import money
from .queries import Outcome
from .rules import Bounds

#: Where the upstream does not say, a token is taken to be so many bytes of UTF-8.
BYTES_PER_TOKEN = 4
#: A number of tokens beyond this is no usage but a mistake.
MAX_PLAUSIBLE_TOKENS = 10**9
#: The most that one call may reserve (nano-dollars), so that sums stay within the database's.
MAX_RESERVATION = 10**15

_ZERO = Decimal(0)


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in USD: for one token, and for each request.

    ``dearest_*``: the highest rate at which the tokens of that side can come (a cache being
    written, reasoning), for a bound that holds.
    """

    prompt: Decimal
    completion: Decimal
    request: Decimal = _ZERO
    dearest_prompt: Decimal | None = None
    dearest_completion: Decimal | None = None

    def cost(self, prompt: int, completion: int) -> int:
        """What so many tokens cost, in nano-dollars, rounded up."""
        return self._sum(prompt, completion, self.prompt, self.completion)

    def bound(self, prompt: int, completion: int) -> int:
        """What so many tokens can cost at most, in nano-dollars."""
        return self._sum(
            prompt,
            completion,
            max(self.prompt, self.dearest_prompt or _ZERO),
            max(self.completion, self.dearest_completion or _ZERO),
        )

    def _sum(
        self, prompt: int, completion: int, per_prompt: Decimal, per_completion: Decimal
    ) -> int:
        tokens = money.cost_nanos(prompt, completion, per_prompt, per_completion)
        return tokens + money.nanos_ceil(self.request)

    def bounds(self, prompt: int, least: int, most: int) -> Bounds:
        """What a call can cost that generates ``least`` to ``most`` tokens."""
        return Bounds(self.bound(prompt, least), self.bound(prompt, most))


class Meter:
    """One call's count.

    Attributes:
        prompt_tokens: known, or estimated until the upstream says.
        completion_tokens: counted as they pass, until the upstream says.
        generated: has the model done anything that can be billed?
        complete: has the answer come to its proper end?
        claimed: what the upstream says that the call cost, in nano-dollars.
    """

    def __init__(self, price: Price, prompt_tokens: int) -> None:
        self.price = price
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.generated = False
        self.complete = False
        self.claimed: int | None = None
        self._told = False

    def count(self, tokens: int = 1) -> None:
        """So many more tokens have passed."""
        self.generated = True
        if not self._told:
            self.completion_tokens += tokens

    def told(self, usage: object) -> None:
        """Take what the upstream says about usage, as far as it can be true."""
        if not isinstance(usage, Mapping):
            return
        fields = cast("Mapping[str, Any]", usage)
        prompt, completion = fields.get("prompt_tokens"), fields.get("completion_tokens")
        if _plausible(prompt) and _plausible(completion):
            self.prompt_tokens, self.completion_tokens = (
                cast("int", prompt),
                cast("int", completion),
            )
            self._told = self.generated = True
        try:
            claimed = money.nanos_ceil(money.amount(fields.get("cost"), most=money.MAX_CAP_USD))
        except ValueError:
            return
        self.claimed = claimed
        self.generated = True

    def cost(self) -> int:
        """In nano-dollars; nothing where nothing was generated."""
        if not self.generated:
            return 0
        if self.claimed is not None:
            return self.claimed
        return self.price.cost(self.prompt_tokens, self.completion_tokens)

    def outcome(self, ended: str) -> Outcome:
        """What goes into the ledger."""
        return Outcome(
            ended=ended,
            generated=self.generated,
            cost=self.cost(),
            claimed=self.claimed,
            prompt_tokens=self.prompt_tokens if self.generated else 0,
            completion_tokens=self.completion_tokens,
        )


def estimate_tokens(data: bytes) -> int:
    """About how many tokens this text is, for want of the upstream's word."""
    return -(-len(data) // BYTES_PER_TOKEN)


def _plausible(tokens: object) -> bool:
    return (
        isinstance(tokens, int)
        and not isinstance(tokens, bool)
        and 0 <= tokens <= MAX_PLAUSIBLE_TOKENS
    )
