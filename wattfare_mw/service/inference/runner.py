"""One call from its reservation to its settling, whatever happens in between.

Reserve, forward, settle: the settling is in a ``finally``, comes before the client can know that
the answer is over, and is carried out once it is handed to the store, whoever is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from ... import sse
from ...errors import WattfareError, WattfareNotConnectedError
from ..ledger.leases import lease_lost
from ..ledger.rules import Terms
from ..ledger.store import LEASE_SECONDS, Store
from ..models.provider import Job
from ..records import Metered, Order, Outcome

#: How long calls are forwarded after the last renewal, in seconds: well within the lease, so
#: that nobody else settles a call that is still being answered.
FORWARD_SECONDS = LEASE_SECONDS - 2

log = logging.getLogger("wattfare_mw.service")


class Out(Protocol):
    """Where the answer goes."""

    async def begin(self) -> None:
        """Send the head of an event stream."""
        ...

    async def write(self, block: bytes) -> None:
        """Send whole events."""
        ...

    async def end(self, block: bytes) -> None:
        """End the event stream, with these last events."""
        ...

    async def json(self, body: bytes) -> None:
        """Send a whole answer."""
        ...


class Flight:
    """A call under way, which can be cut off from outside."""

    def __init__(self, order: Order, job: Job) -> None:
        self.order = order
        self._job = job
        self.recorded = 0
        self.cut: WattfareError | None = None
        self._task = asyncio.current_task()

    def stop(self, error: WattfareError) -> None:
        """End the call here; its client is told this."""
        if self.cut is None and self._task is not None:
            self.cut = error
            self._task.cancel()

    def metered(self) -> Metered | None:
        """What a stream has cost so far, where that is more than is recorded."""
        now = self._job.meter.outcome("")
        if not self.order.stream or now.cost <= self.recorded:
            return None
        return Metered(self.order.id, now.cost, now.prompt_tokens, now.completion_tokens)

    def resume(self) -> None:
        """The cancellation has been heard; what is left to do goes on."""
        if self._task is not None:
            self._task.uncancel()


class Calls:
    """Runs calls, and knows those in flight. They run on a lease, which someone has to renew."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._store = store
        self._terms = terms
        self._flights: set[Flight] = set()
        self._ending: set[Flight] = set()  # those in flight, and those that are being settled
        self._all_ended: asyncio.Event | None = None  # where somebody waits for that
        self._forward_until = -math.inf
        # Those that the database could not be told the end of. Their number is bounded by the
        # lease: without a database, nothing new is let in.
        self._unsettled: dict[str, Outcome] = {}

    def cut_off(self, error: WattfareError, whose: Callable[[Order], bool]) -> None:
        """End the calls in flight that ``whose`` picks; each client is told ``error``."""
        for flight in list(self._flights):
            if whose(flight.order):
                flight.stop(error)

    async def close(self, error: WattfareError) -> None:
        """End the calls that are left, and wait until each is settled: a client that does not
        take its last words keeps nobody waiting."""
        self.cut_off(error, lambda _: True)
        if self._ending:
            self._all_ended = asyncio.Event()
            await self._all_ended.wait()

    async def renew(self) -> None:
        """Renew the lease, note with it what the streams have cost, and cut off those calls whose
        user has taken the connection back. To be called all the time: without a renewal, calls
        are cut off before others may take them for dead.

        Raises:
            WattfareError: 503, the database is not there.
        """
        began = time.monotonic()
        metered = {flight: each for flight in self._flights if (each := flight.metered())}
        renewal = await self._store.renew(list(metered.values()))
        if not renewal.held:
            self._lose()
            return
        # Counted from before the question was asked: the database counts from later.
        self._forward_until = began + FORWARD_SECONDS
        for flight, each in metered.items():
            flight.recorded = each.cost
        if renewal.revoked:
            self.cut_off(taken_back(), lambda order: order.id in renewal.revoked)
        await self._settle_what_is_left()

    def check_lease(self) -> None:
        """Is there time left in which these calls are ours?

        Raises:
            WattfareError: 503, there is none; all that is in flight is cut off.
        """
        if time.monotonic() >= self._forward_until:
            self._lose()
            raise lease_lost()

    @property
    def seconds_left(self) -> float:
        """How long calls may go on without a renewal."""
        return self._forward_until - time.monotonic()

    def _lose(self) -> None:
        self._forward_until = -math.inf
        self.cut_off(lease_lost(), lambda _: True)

    async def _settle_what_is_left(self) -> None:
        for reservation_id, outcome in list(self._unsettled.items()):
            await self._store.settle(reservation_id, outcome)
            del self._unsettled[reservation_id]

    async def run(self, order: Order, job: Job, out: Out) -> None:
        """Carry a call out, in a task of its own: cancelling that says that the client has gone.

        Raises:
            WattfareError: it failed, or was refused, before anything was sent.
        """
        self.check_lease()
        flight = Flight(order, job)
        # Known before it is reserved, so that nothing can slip in between.
        self._flights.add(flight)
        self._ending.add(flight)
        begun = False
        settled = False
        ended = "completed"
        error: WattfareError | None = None

        async def settle() -> None:
            nonlocal settled
            if settled:
                return
            await self._store.settle(order.id, job.meter.outcome(ended))
            settled = True
            self._flights.discard(flight)  # what is paid for is delivered
            self._leave(flight)

        try:
            try:
                granted = await self._store.reserve(order, self._terms)
            except WattfareError as refusal:
                settled = True  # there is nothing to settle
                if refusal.http_status == 503:
                    # Nobody knows: the database may have heard, and its answer been lost.
                    self._unsettled[order.id] = Outcome(ended="failed")
                raise
            await job.start(granted)
            if order.stream:
                begun = True
                await out.begin()
                events = await job.read_events()
                while not job.meter.complete:
                    if time.monotonic() >= self._forward_until:
                        self._lose()
                        await asyncio.sleep(0)  # to hear of it
                    await out.write(events)
                    events = await job.read_events()
                await settle()
                await out.end(events)
            else:
                body = await job.body()
                await settle()
                await out.json(body)
        except asyncio.CancelledError:
            job.meter.left()
            ended, error = "client_gone", flight.cut
            if error is None:
                raise
            ended = "cut_off"
            flight.resume()
        except OSError:
            job.meter.left()
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
                error = await self._settle_at_last(flight, job, ended, settle) or error
        if error is None:
            return
        if not begun:
            raise error
        log.warning(
            "stream ended early: %s: %s request_id=%s cause=%r",
            error.code,
            error.message,
            order.request_id,
            error.__cause__,
        )
        await out.end(sse.write_error(error))

    async def _settle_at_last(
        self, flight: Flight, job: Job, ended: str, settle: Callable[[], Awaitable[None]]
    ) -> WattfareError | None:
        try:
            await settle()
        except WattfareError as failure:
            # The reservation stands, and is settled when the database is there again.
            self._unsettled[flight.order.id] = job.meter.outcome(ended)
            log.error(
                "call not settled: %s request_id=%s cause=%r",
                failure.message,
                flight.order.request_id,
                failure.__cause__,
            )
            return failure
        finally:
            self._leave(flight)
        return None

    def _leave(self, flight: Flight) -> None:
        self._ending.discard(flight)
        if self._all_ended is not None and not self._ending:
            self._all_ended.set()


def taken_back() -> WattfareError:
    """What the client of a call is told whose user has revoked the connection."""
    return WattfareNotConnectedError("The user has taken this connection back.")
