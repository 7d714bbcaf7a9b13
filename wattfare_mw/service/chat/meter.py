"""Tracks the cost of a call, from the upstream's reports or from its own count.

The meter uses the first of these that it has: a cost that the upstream reports, reported tokens at
their prices, its own count. A report covers everything before it. The last report counts, and the
meter adds its own count of later tokens. If a report's count has not grown with the text, the
report is for one chunk alone, and is added to the previous ones. An impossible part of a report is
ignored, see :mod:`.usage`.

Without a report, the number of tokens is unknown. The meter then uses two estimates for two
questions:

- *What is billed?* The larger of two numbers: one token for each chunk with text, and one for each
  :data:`BYTES_PER_TOKEN` bytes. For most texts, this is a little more than the real number of
  tokens. The bill is never above the reservation.
- *Is the reservation spent?* If :attr:`Meter.spent` is true, the stream is cut off. So it must
  never be true for an upstream that respects its limit. The meter uses the larger of two numbers:
  one token for each chunk, and one for each :data:`MOST_CHARACTERS_PER_TOKEN` characters. Hidden
  reasoning counts only when the upstream reports it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from ...types import Json
from ..records import Outcome
from . import usage as reported_usage
from .price import Price
from .usage import TokenCounts

#: The estimated length of a token, in bytes of UTF-8.
BYTES_PER_TOKEN = 4
#: The maximum characters per token of any long text. English has 4 to 5.
MOST_CHARACTERS_PER_TOKEN = 8
#: If a cost is more than this many times the price of its own tokens, its unit is not USD.
MOST_TIMES = 50
#: The maximum number of choices whose usage is counted separately.
MAX_CHOICES = 128


class Meter:
    """Tracks the cost of one call.

    Args:
        price: the price of the model. If None, only the upstream can report the cost.
        prompt_tokens: an estimate, which is used until the upstream reports the number.
        began: when the call began (UTC), for a price that depends on the time of the day.
        images: the number of images in the request.

    Attributes:
        sent: True if the request was sent to the upstream.
        generated: True if the model has produced anything that can be billed.
        complete: True if the answer is complete.
        tier: the service tier that the provider has reported for the call; None if it did not.
        bounded: True if the tokens of the call bound its cost.
    """

    # The initial state of each call.
    sent = False
    generated = False
    complete = False
    tier: str | None = None
    bounded = False
    _granted: int | None = None
    _tokens_reported = False
    _cost: int | None = None  # the cost that the upstream reports
    _counted_in_cost = 0  # the completion tokens counted before that report
    _chunks = _bytes = _characters = 0  # since the last report
    # The number of tokens that the reservation pays for; None for any number. It is cached, because
    # each chunk needs it.
    _paid_for: int | None = None
    _paid_for_is_known = False

    def __init__(
        self,
        price: Price | None,
        prompt_tokens: int,
        began: datetime | None = None,
        *,
        images: int = 0,
    ) -> None:
        self.price = price
        self._began = began or datetime.now(UTC)
        # The upstream's report. Before there is one, the prompt is an estimate.
        self._used = TokenCounts(prompt=prompt_tokens, images=images)
        self._by_choice: dict[int, TokenCounts] = {}

    @property
    def granted(self) -> int | None:
        """The reserved amount of the call, in nano-dollars; None before the reservation."""
        return self._granted

    @granted.setter
    def granted(self, granted: int | None) -> None:
        self._granted = granted
        self._paid_for_is_known = False

    def priced_at(self, price: Price) -> None:
        """Use this price, which is the price of the model that answers."""
        self.price = price
        self._paid_for_is_known = False

    def count(self, tokens: int = 1, text: str = "") -> None:
        """Count this many tokens. If their ``text`` is long for this number, its length counts
        instead: see :attr:`completion_tokens` and :attr:`spent`."""
        self.generated = True
        self._chunks += tokens
        length = len(text)
        self._characters += length
        self._bytes += length if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def client_left(self) -> None:
        """Record that the client has left. The prompt is billed, because the model may have read
        it. Otherwise, a client could disconnect early, and the operator would pay for its prompts.
        """
        self.generated |= self.sent

    def empty(self) -> None:
        """Record that the upstream has ended without an answer. Only a reported cost is billed."""
        self.generated = bool(self._cost)

    def add_usage(self, usage: Json, choice: int | None = None) -> None:
        """Add a report of the upstream, except for impossible parts.

        Args:
            choice: the index of the choice that the report is for; None for the whole answer.
        """
        if not isinstance(usage, dict):
            return
        report = reported_usage.read(usage)
        passed = self.completion_tokens > 0
        if report.only_total:
            # MiniMax reports only the total. The total minus the prompt is the answer, with hidden
            # reasoning.
            rest = max(report.only_total - self.prompt_tokens, self.completion_tokens)
            counts = TokenCounts(completion=rest)
            report = msgspec.structs.replace(report, counts=counts, completion=True)
        # A prompt or an answer has at least one token, so a zero is a placeholder.
        completion = report.completion and (report.counts.completion > 0 or not passed)
        if report.prompt or (completion and report.counts.completion):
            # NanoGPT reports the cost before the tokens. Without text in between, it includes them.
            included = passed and self._cost and self.completion_tokens <= self._counted_in_cost
            self._take_counts(report, completion, choice)
            if included:
                self._counted_in_cost = self.completion_tokens
        if report.cost is None:
            return
        if not report.cost and self._is_priced and passed and not completion:
            return
        if self._is_in_another_unit(report.cost):
            return
        self.charge(report.cost)

    def _is_in_another_unit(self, cost: int) -> bool:
        """True if the cost is far above everything that the tokens in the report can cost. Some
        gateways count in a unit of their own."""
        if not self.bounded or self.price is None or self._granted is None or cost <= self._granted:
            return False
        tokens = self.price.cost(self._used, self._began, self.tier) if self._tokens_reported else 0
        return 0 < tokens * MOST_TIMES < cost

    def charge(self, cost: int) -> None:
        """Record the cost of the whole call, in nano-dollars."""
        self._cost = cost
        self._counted_in_cost = self.completion_tokens
        self.generated = True

    @property
    def _is_priced(self) -> bool:
        return self.price is not None and self.price.bound(1, 1) > 0

    def _take_counts(
        self, report: reported_usage.ReportedUsage, completion: bool, choice: int | None
    ) -> None:
        counts = report.counts
        if choice is not None:
            # Each choice has its own report. All of them have the same prompt.
            if choice in self._by_choice or len(self._by_choice) < MAX_CHOICES:
                self._by_choice[choice] = counts
            counts = _sum_of_choices(list(self._by_choice.values()))
        elif completion and self._is_for_one_chunk(counts.completion):
            whole = self._used.completion + counts.completion
            counts = msgspec.structs.replace(counts, completion=whole)
        if not report.prompt:
            counts = _with_counts(counts, self._used, "prompt", *reported_usage.PROMPT_PARTS)
        if completion:
            self._chunks = self._bytes = self._characters = 0
        else:
            counts = _with_counts(
                counts, self._used, "completion", *reported_usage.COMPLETION_PARTS
            )
        if self._used.images:  # reports do not have the number of images
            counts = msgspec.structs.replace(counts, images=self._used.images)
        self._used = counts
        self._tokens_reported = True
        self.generated = True
        self._paid_for_is_known = False

    def _is_for_one_chunk(self, completion: int) -> bool:
        """True if the report counts only the tokens since the previous report. A count of the whole
        answer would grow with its text."""
        if not self._used.completion:
            return False
        since = self.completion_tokens - self._used.completion
        return 0 < completion <= min(self._used.completion, 2 * since)

    @property
    def prompt_tokens(self) -> int:
        """The number of prompt tokens that the upstream has reported, or an estimate."""
        return self._used.prompt

    @property
    def completion_tokens(self) -> int:
        """The number of completion tokens that the upstream has reported, plus those counted after
        the report."""
        reported = self._used.completion
        if not self._chunks and not self._bytes:
            return reported  # the usual case after a report, without the division and a call
        return reported + max(self._chunks, -(-self._bytes // BYTES_PER_TOKEN))

    @property
    def claimed(self) -> int | None:
        """The cost from the upstream's reports alone, in nano-dollars; None without a report."""
        if self._cost is not None:
            return self._cost
        if not self._tokens_reported or self.price is None:
            return None
        return self.price.cost(self._used, self._began, self.tier)

    @property
    def spent(self) -> bool:
        """True if the answer certainly costs more than the reservation."""
        if not self._paid_for_is_known:
            self._paid_for_is_known = True
            self._paid_for = None
            if self._granted is not None and self.price is not None:
                self._paid_for = self.price.tokens_for(
                    self._granted, self.prompt_tokens, self._began
                )
        if self._paid_for is None:
            return False
        left = self._paid_for - self._used.completion
        return self._chunks > left or self._characters // MOST_CHARACTERS_PER_TOKEN > left

    @property
    def overrun(self) -> int:
        """The part of the reported cost above the reservation, in nano-dollars. It is not
        billed."""
        claimed = self.claimed
        if self._granted is None or claimed is None:
            return 0
        return max(claimed - self._granted, 0)

    def cost(self) -> int:
        """The cost so far, in nano-dollars; 0 if nothing was generated.

        If the cost is unknown (without a report and a price), an answer that breaks off costs the
        whole reservation. Otherwise, a client could disconnect early and get answers of an unpriced
        model for free. A complete answer of unknown cost is free, because the operator should have
        set a price: see :meth:`.Upstream.prepare`.
        """
        if not self.generated:
            return 0
        since = self.completion_tokens - self._counted_in_cost
        if self._cost is None:
            if self.price is not None:
                used, completion = self._used, self.completion_tokens
                if completion != used.completion:
                    used = msgspec.structs.replace(used, completion=completion)
                return self.price.cost(used, self._began, self.tier)
        elif since <= 0:
            return self._cost
        elif self.price is not None:
            more = self.price.cost_of_more(since, self.prompt_tokens, self._began, self.tier)
            return self._cost + more
        return 0 if self.complete else self.granted or 0

    @property
    def cost_reported(self) -> bool:
        """True if the upstream has reported a cost."""
        return self._cost is not None

    @property
    def is_known(self) -> bool:
        """True if the cost is known from a report or a price."""
        return self._cost is not None or self.price is not None

    @property
    def billed(self) -> int:
        """The bill so far, in nano-dollars. It is never more than the reservation."""
        cost = self.cost()
        return cost if self._granted is None else min(cost, self._granted)

    def outcome(self, ended: str) -> Outcome:
        """The outcome for the ledger."""
        return Outcome(
            ended=ended,
            generated=self.generated,
            cost=self.cost(),
            claimed=self.claimed,
            prompt_tokens=self.prompt_tokens if self.generated else 0,
            completion_tokens=self.completion_tokens,
        )


def estimate_tokens(data: bytes) -> int:
    """An estimate of the tokens of this text."""
    return -(-len(data) // BYTES_PER_TOKEN)


def _with_counts(counts: TokenCounts, known: TokenCounts, *names: str) -> TokenCounts:
    """``counts``, but with the named fields of ``known``. Some providers report the prompt at the
    start of a stream, and the answer at its end."""
    return msgspec.structs.replace(counts, **{name: getattr(known, name) for name in names})


def _sum_of_choices(reports: list[TokenCounts]) -> TokenCounts:
    """Combine reports: the prompt of the one with the longest prompt, and the sum of all
    answers."""
    longest = max(reports, key=lambda counts: counts.prompt)
    sums = {
        name: sum(getattr(counts, name) for counts in reports)
        for name in ("completion", *reported_usage.COMPLETION_PARTS)
    }
    return msgspec.structs.replace(longest, **sums)
