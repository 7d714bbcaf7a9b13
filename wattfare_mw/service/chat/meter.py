"""What a call has cost so far: counted as it passes, or as the upstream's usage says.

The upstream's own ``usage.cost`` counts, else its tokens times their price, else what was counted
as it passed. What it says holds for all that it had sent by then: the last word counts, and what
is generated behind it is counted on top. What cannot be true (no number, negative, NaN, beyond
all measure) was not said.

Where the upstream does not say, nobody knows how many tokens a text is, and two counts stand for
them, for two questions:

- *What is billed*: a token for each chunk that generated something, or one for each
  :data:`BYTES_PER_TOKEN` bytes, whichever is more. It is a little above what tokenizers make of
  most texts, and never above what was reserved.
- *Is the reservation spent?* :attr:`Meter.spent` cuts a stream off, so it must never hold for an
  upstream that keeps to its limit: a token for each chunk, or one for each
  :data:`MOST_CHARACTERS_PER_TOKEN` characters. What a model thinks without showing it is not
  seen here, and only counts once the upstream says so.
"""

from __future__ import annotations

from typing import Any, cast

from ... import money
from ..records import Outcome
from .price import Price

#: Where the upstream does not say, a token is taken to be so many bytes of UTF-8.
BYTES_PER_TOKEN = 4
#: No text of any length has more characters for each of its tokens: English has 4 to 5.
MOST_CHARACTERS_PER_TOKEN = 8
#: A number of tokens beyond this is no usage but a mistake.
MAX_PLAUSIBLE_TOKENS = 10**9


class Meter:
    """One call's count.

    Attributes:
        price: None: not known, so that only the upstream can say what it costs.
        sent: is the prompt on its way to the model?
        prompt_tokens: known, or estimated until the upstream says.
        generated: has the model done anything that can be billed?
        complete: has the answer come to its proper end?
    """

    def __init__(self, price: Price | None, prompt_tokens: int) -> None:
        self.price = price
        self.prompt_tokens = prompt_tokens
        self._granted: int | None = None
        self.sent = False
        self.generated = False
        self.complete = False
        self._reported_completion: int | None = None  # completion tokens, in the upstream's words
        self._cost: int | None = None  # what it says that all this costs
        self._counted_in_cost = 0  # completion tokens that had passed by then
        self._chunks = self._bytes = self._characters = 0  # passed since it last said
        # So many tokens, which is asked at each chunk; None: any number.
        self._paid_for: int | None = None

    @property
    def granted(self) -> int | None:
        """What the call may cost, in nano-dollars; None before that is known."""
        return self._granted

    @granted.setter
    def granted(self, granted: int | None) -> None:
        self._granted = granted
        self._look_what_is_paid_for()

    def _look_what_is_paid_for(self) -> None:
        if self._granted is not None and self.price is not None:
            self._paid_for = self.price.tokens_for(self._granted, self.prompt_tokens)

    def count(self, tokens: int = 1, text: str = "") -> None:
        """So many more tokens have passed, or more of them, if this text is longer."""
        self.generated = True
        self._chunks += tokens
        length = len(text)
        self._characters += length
        self._bytes += length if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def left(self) -> None:
        """Nobody waits for the answer any more. The model may have read the prompt by now, so that
        this much is billed: who hangs up in time would have it read for nothing, at the cost of
        whoever pays the upstream."""
        self.generated |= self.sent

    def add_usage(self, usage: object) -> None:
        """Take what the upstream says about usage, as far as it can be true."""
        if not isinstance(usage, dict):
            return
        fields = cast("dict[str, Any]", usage)
        prompt, completion = fields.get("prompt_tokens"), fields.get("completion_tokens")
        if _plausible(prompt) and _plausible(completion):
            self.prompt_tokens = cast("int", prompt)
            self._reported_completion = cast("int", completion)
            self._chunks = self._bytes = self._characters = 0
            self.generated = True
            self._look_what_is_paid_for()
        cost = fields.get("cost")
        if cost is None:
            return
        try:
            self._cost = money.nanos_ceil(money.amount(cost, most=money.MAX_CAP_USD))
        except ValueError:
            return
        self._counted_in_cost = self.completion_tokens
        self.generated = True

    @property
    def completion_tokens(self) -> int:
        """As the upstream says, and what has been counted since."""
        return (self._reported_completion or 0) + max(
            self._chunks, -(-self._bytes // BYTES_PER_TOKEN)
        )

    @property
    def claimed(self) -> int | None:
        """What the upstream says that the call cost, in nano-dollars, by its words or tokens."""
        if self._cost is not None:
            return self._cost
        if self._reported_completion is None or self.price is None:
            return None
        return self.price.cost(self.prompt_tokens, self._reported_completion)

    @property
    def spent(self) -> bool:
        """Has more passed, for certain, than what was granted pays for?"""
        if self._paid_for is None:
            return False
        left = self._paid_for - (self._reported_completion or 0)
        return self._chunks > left or self._characters // MOST_CHARACTERS_PER_TOKEN > left

    @property
    def overrun(self) -> int:
        """What the upstream claims beyond what was granted, in nano-dollars: nobody is billed
        that."""
        claimed = self.claimed
        if self._granted is None or claimed is None:
            return 0
        return max(claimed - self._granted, 0)

    def cost(self) -> int:
        """In nano-dollars; nothing where nothing was generated. Where nobody can say, it is all
        that was granted: whoever hangs up on an unpriced model would have it for nothing."""
        if not self.generated:
            return 0
        since = self.completion_tokens - self._counted_in_cost
        if self._cost is None:
            if self.price is not None:
                return self.price.cost(self.prompt_tokens, self.completion_tokens)
        elif since <= 0:
            return self._cost
        elif self.price is not None:
            return self._cost + self.price.cost_of_more(since)
        return self.granted or 0

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
