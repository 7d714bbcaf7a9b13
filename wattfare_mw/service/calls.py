"""One call from its reservation to its settling, whatever happens in between.

Reserve, forward, settle: the settling is in a ``finally``, comes before the client can know that
the answer is over, and is carried out once it is handed to the store, whoever is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from .. import sse
from ..errors import WattfareError
from .provider import Job
from .queries import Order
from .rules import Terms
from .store import Store

log = logging.getLogger("wattfare_mw.service")


class Out(Protocol):
    """Where the answer goes."""

    async def begin(self) -> None:
        """Send the head of an event stream."""
        ...

    async def write(self, block: bytes) -> None:
        """Send whole events."""
        ...

    async def end(self) -> None:
        """End the event stream."""
        ...

    async def json(self, body: bytes) -> None:
        """Send a whole answer."""
        ...


class Flight:
    """A call under way, which can be cut off from outside."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.cut: WattfareError | None = None
        self._task = asyncio.current_task()

    def stop(self, error: WattfareError) -> None:
        """End the call here; its client is told this."""
        if self.cut is None and self._task is not None:
            self.cut = error
            self._task.cancel()

    def resume(self) -> None:
        """The cancellation has been heard; what is left to do goes on."""
        if self._task is not None:
            self._task.uncancel()


class Calls:
    """Runs calls, and knows those in flight."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._store = store
        self._terms = terms
        self._flights: set[Flight] = set()

    def cut_off(self, error: WattfareError, whose: Callable[[Order], bool]) -> None:
        """End the calls in flight that ``whose`` picks; each client is told ``error``."""
        for flight in list(self._flights):
            if whose(flight.order):
                flight.stop(error)

    async def run(self, order: Order, job: Job, *, stream: bool, out: Out) -> None:
        """Carry a call out, in a task of its own: cancelling that says that the client has gone.

        Raises:
            WattfareError: it failed, or was refused, before anything was sent.
        """
        flight = Flight(order)
        # Known before it is reserved, so that nothing can slip in between.
        self._flights.add(flight)
        begun = False
        settled = False
        ended = "completed"
        error: WattfareError | None = None

        async def settle() -> None:
            nonlocal settled
            await self._store.settle(order.id, job.meter.outcome(ended))
            settled = True
            self._flights.discard(flight)  # what is paid for is delivered

        try:
            try:
                granted = await self._store.reserve(order, self._terms)
            except WattfareError:
                settled = True  # refused: there is nothing to settle
                raise
            await job.start(granted)
            if stream:
                begun = True
                await out.begin()
                async with aclosing(job.blocks()) as blocks:
                    async for block in blocks:
                        if job.meter.complete and not settled:
                            await settle()
                        await out.write(block)
                await out.end()
            else:
                body = await job.body()
                await settle()
                await out.json(body)
        except asyncio.CancelledError:
            ended, error = "client_gone", flight.cut
            if error is None:
                raise
            ended = "cut_off"
            flight.resume()
        except OSError:
            ended = "client_gone"  # some servers say so when they are given something to send
        except WattfareError as failure:
            ended, error = "failed", failure
        except Exception:
            ended = "failed"
            error = WattfareError("The service failed.", status=500)
            log.exception("call failed request_id=%s", order.request_id)
        finally:
            self._flights.discard(flight)
            try:
                await job.close()
            finally:
                if not settled:
                    error = await self._settle_at_last(order, settle) or error
        if error is None:
            return
        if not begun:
            raise error
        await out.write(sse.write_error(error))
        await out.end()

    async def _settle_at_last(
        self, order: Order, settle: Callable[[], Awaitable[None]]
    ) -> WattfareError | None:
        try:
            await settle()
        except WattfareError as failure:
            # The reservation stands, and is settled when the service next starts.
            log.error("call not settled: %s request_id=%s", failure.message, order.request_id)
            return failure
        return None
