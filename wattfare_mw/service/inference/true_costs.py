"""Asks a provider for the cost of streams that were not read to their end."""

from __future__ import annotations

import asyncio

import msgspec

from ...errors import WattfareError, WattfareFundingError
from ...logs import describe, get_logger
from ..models.credential import Credential, PayerKeys
from ..models.provider import Provider
from ..records import Account, MeterReading, Outcome

#: How long to ask for a record, in seconds.
RECORD_SECONDS = 60.0
#: The pause before the first question, in seconds. Each pause is twice as long as the last one, up
#: to the longest.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
#: The maximum number of concurrent questions, because a dead process can leave thousands of
#: streams.
QUESTIONS_AT_ONCE = 16

log = get_logger("wattfare_mw.service", show_messages=False)


class TrueCosts:
    """Asks a provider for records. A record can appear some seconds after its stream.

    Args:
        seconds: how long to ask for each record, in seconds.
        keys: the keys of payers. Only the key that paid can read the record.
    """

    def __init__(
        self,
        provider: Provider,
        seconds: float = RECORD_SECONDS,
        *,
        keys: PayerKeys | None = None,
    ) -> None:
        self._provider = provider
        self._keys = keys
        self._seconds = seconds
        self._turns = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    async def ask(self, generation_id: str, funding_id: str | None = None) -> int | None:
        """The cost of this generation, in nano-dollars. None if the provider does not report it in
        time.

        Args:
            funding_id: the funding whose key paid. None for the operator's key.
        """
        pause = FIRST_PAUSE
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    await asyncio.sleep(pause)
                    cost = await self._ask_once(generation_id, funding_id)
                    if cost is not None:
                        return cost
                    pause = min(2 * pause, LONGEST_PAUSE)
        except (TimeoutError, WattfareFundingError):
            return None

    async def _ask_once(self, generation_id: str, funding_id: str | None) -> int | None:
        async with self._turns:
            try:
                credential = await self._credential(funding_id)
                return await self._provider.true_cost(generation_id, credential)
            except WattfareFundingError:
                raise  # the key is gone, so the record cannot be read
            except WattfareError as error:
                # 404 is usual: the record appears some seconds after the stream.
                log.debug("no record yet: %s", describe(error))
                return None

    async def _credential(self, funding_id: str | None) -> Credential | None:
        if funding_id is None or self._keys is None:
            return None
        # Read the key from the database, because the payer may have removed it since the call.
        return await self._keys.credential(funding_id, fresh=True)


class OpenQuestion(msgspec.Struct, eq=False):
    """An ended stream whose true cost is not known yet.

    Attributes:
        outcome: the outcome if the provider does not report the cost.
        if_reported: how the call ends in the ledger if the provider reports the cost.
        funding_id: the funding whose key paid. None for the operator's key.
        is_recorded: True if the database has ``outcome`` and the id.
    """

    reservation_id: str
    account: Account
    generation_id: str
    outcome: Outcome
    if_reported: str
    funding_id: str | None = None
    is_recorded: bool = False

    def reading(self) -> MeterReading | None:
        """The facts that another process would need to settle the stream. None if they are already
        recorded."""
        if self.is_recorded:
            return None
        return MeterReading(
            self.reservation_id,
            self.account,
            self.outcome.cost,
            self.outcome.prompt_tokens,
            self.outcome.completion_tokens,
            self.generation_id,
        )

    def note(self, reading: MeterReading) -> None:
        """Remember that this reading is in the database."""
        self.is_recorded = True

    def answered(self, cost: int | None) -> Outcome:
        """The outcome of the stream, given the provider's answer."""
        if cost is None:
            return self.outcome
        return msgspec.structs.replace(
            self.outcome,
            ended=self.if_reported,
            generated=self.outcome.generated or cost > 0,
            cost=cost,
            claimed=cost,
        )
