"""Asks a provider what a stream cost that was not read to its end, until its record is there."""

from __future__ import annotations

import asyncio

import msgspec

from ...errors import WattfareError, WattfareFundingError
from ...logs import describe, get_logger
from ..models.credential import Credential, PayerKeys
from ..models.provider import Provider
from ..records import Account, MeterReading, Outcome

#: How long a record is asked for, in seconds.
RECORD_SECONDS = 60.0
#: The pause before the first question, in seconds. Each pause is twice as long as the last one, up
#: to the longest.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
#: So many questions at a time: a process can leave thousands of streams behind.
QUESTIONS_AT_ONCE = 16

log = get_logger("wattfare_mw.service", show_messages=False)


class TrueCosts:
    """Asks this provider, of which each record may come late.

    Args:
        seconds: how long each record is asked for.
        keys: the keys of payers. A record is shown to the key that paid.
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
        """What this generation cost, in nano-dollars; None if the provider does not tell in
        time.

        Args:
            funding_id: whose key paid; None for the operator's.
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
                raise  # the key is gone, so the record will not be seen
            except WattfareError as error:
                # 404 is usual: the record comes some seconds after the stream.
                log.debug("no record yet: %s", describe(error))
                return None

    async def _credential(self, funding_id: str | None) -> Credential | None:
        if funding_id is None or self._keys is None:
            return None
        # From the database: the payer may have removed it since.
        return await self._keys.credential(funding_id, fresh=True)


class OpenQuestion(msgspec.Struct, eq=False):
    """A stream that has ended, and whose true cost is asked for.

    Attributes:
        outcome: what it is settled at if the provider does not tell.
        if_told: how it has ended if the provider tells.
        funding_id: whose key paid; None for the operator's.
        is_recorded: does the database know ``outcome`` and the id?
    """

    reservation_id: str
    account: Account
    generation_id: str
    outcome: Outcome
    if_told: str
    funding_id: str | None = None
    is_recorded: bool = False

    def reading(self) -> MeterReading | None:
        """What another process has to know, if it is not recorded so far."""
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
        """This has been recorded."""
        self.is_recorded = True

    def answered(self, cost: int | None) -> Outcome:
        """What the stream is settled at, now that the provider has said this."""
        if cost is None:
            return self.outcome
        return msgspec.structs.replace(
            self.outcome,
            ended=self.if_told,
            generated=self.outcome.generated or cost > 0,
            cost=cost,
            claimed=cost,
        )
