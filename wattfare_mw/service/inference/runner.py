"""Runs one call from its reservation to its settlement.

Reserve, forward, settle. The settlement is in a ``finally``. It comes before the client can know
that the answer is over. Once the store has it, it is carried out even if the task is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Protocol

from ... import sse
from ...errors import WattfareError
from ...logs import describe, get_logger
from ..errors import lease_lost, not_answered, revoked
from ..ledger.clock import steady_seconds
from ..ledger.store import LEASE_SECONDS, Store
from ..models.provider import Job
from ..records import DETACHED_SECONDS, InferenceCall, MeterReading, Outcome, Terms

#: How long calls are forwarded after the last renewal, in seconds: well within the lease, so
#: that nobody else settles a call that is still being answered.
FORWARD_SECONDS = LEASE_SECONDS - 2


log = get_logger("wattfare_mw.service", show_messages=False)


class Output(Protocol):
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


class ActiveCall:
    """A call under way, which can be cut off from outside."""

    def __init__(self, call: InferenceCall, job: Job) -> None:
        self.call = call
        self._job = job
        self.recorded = 0
        self.cut: WattfareError | None = None
        self.ended = "cut_off"  # if it is cut off
        self.detached = False
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None

    def stop(self, error: WattfareError, ended: str = "cut_off") -> None:
        """End the call here; its client is told this."""
        if self.cut is None and self._task is not None:
            self.cut, self.ended = error, ended
            self._task.cancel()

    def detach(self, seconds: float) -> bool:
        """The client has left. Does the call go on, for at most this time?"""
        # What is not sent costs nothing, so it is not sent any more.
        if not self.detached and self._job.detaches and self._job.meter.sent:
            self.detached = True
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self.stop, not_answered(seconds), "timed_out")
        return self.detached

    def end(self) -> None:
        """The call is over. No timer stops it any more."""
        if self._timer is not None:
            self._timer.cancel()

    def reading(self) -> MeterReading | None:
        """What a stream has cost so far, where that is more than is recorded."""
        now = self._job.meter.outcome("")
        if not self.call.stream or now.cost <= self.recorded:
            return None
        return MeterReading(self.call.id, now.cost, now.prompt_tokens, now.completion_tokens)

    def resume(self) -> None:
        """The cancellation has been heard; what is left to do goes on."""
        if self._task is not None:
            self._task.uncancel()


class CallRunner:
    """Runs calls, and knows those in flight. They run on a lease, which someone has to renew.

    Args:
        detached_seconds: how long a call may go on without its client, in seconds.
    """

    def __init__(
        self, store: Store, terms: Terms, *, detached_seconds: float = DETACHED_SECONDS
    ) -> None:
        self._store = store
        self._terms = terms
        self._detached_seconds = detached_seconds
        self._active: set[ActiveCall] = set()
        self._ending: set[ActiveCall] = set()  # those in flight, and those that are being settled
        self._all_ended: asyncio.Event | None = None  # where somebody waits for that
        self._forward_until = -math.inf
        # Those that the database could not be told the end of. Their number is bounded by the
        # lease: without a database, nothing new is let in.
        self._unsettled: dict[str, Outcome] = {}

    def cut_off(self, error: WattfareError, whose: Callable[[InferenceCall], bool]) -> None:
        """End the calls in flight that ``whose`` picks; each client is told ``error``."""
        for active in list(self._active):
            if whose(active.call):
                active.stop(error)

    def detach(self, call_id: str) -> bool:
        """The client of this call has left. Does the call go on without it? It does if its
        provider would charge for the whole answer anyway. If not, cancel its task."""
        for active in self._active:
            if active.call.id == call_id:
                return active.detach(self._detached_seconds)
        return False

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
        began = steady_seconds()
        readings = {active: each for active in self._active if (each := active.reading())}
        renewal = await self._store.renew(list(readings.values()))
        if not renewal.held:
            self._lose()
            return
        # Counted from before the question was asked: the database counts from later.
        self._forward_until = began + FORWARD_SECONDS
        for active, each in readings.items():
            active.recorded = each.cost
        if renewal.revoked:
            self.cut_off(revoked(), lambda call: call.id in renewal.revoked)
        await self._settle_unsettled()

    def check_lease(self) -> None:
        """Is there time left in which these calls are ours?

        Raises:
            WattfareError: 503, there is none; all that is in flight is cut off.
        """
        if steady_seconds() >= self._forward_until:
            self._lose()
            raise lease_lost()

    @property
    def seconds_left(self) -> float:
        """How long calls may go on without a renewal."""
        return self._forward_until - steady_seconds()

    def _lose(self) -> None:
        self._forward_until = -math.inf
        self.cut_off(lease_lost(), lambda _: True)

    async def _settle_unsettled(self) -> None:
        for reservation_id, outcome in list(self._unsettled.items()):
            await self._settle(reservation_id, outcome)
            del self._unsettled[reservation_id]

    async def _settle(self, reservation_id: str, outcome: Outcome) -> None:
        if await self._store.settle(reservation_id, outcome) is not None:
            return
        # Another process settled the call, because this one did not renew its lease in time.
        corrected = await self._store.correct(reservation_id, outcome, self._terms)
        if corrected is not None:
            log.warning(
                "a call was settled by another process, and is corrected: reservation=%s",
                reservation_id,
            )

    async def run(
        self,
        call: InferenceCall,
        job: Job,
        output: Output,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a call, in a task of its own. When the client leaves, ask :meth:`detach`; if the
        call does not go on, cancel the task.

        Args:
            started: called once the upstream has the request, which the job then holds no longer.

        Raises:
            WattfareError: it failed, or was refused, before anything was sent.
        """
        self.check_lease()
        active = ActiveCall(call, job)
        # Known before it is reserved, so that nothing can slip in between.
        self._active.add(active)
        self._ending.add(active)
        begun = False
        settled = False
        ended = "completed"
        error: WattfareError | None = None

        async def settle() -> None:
            nonlocal settled
            if settled:
                return
            await self._settle(call.id, job.meter.outcome(ended))
            settled = True
            self._active.discard(active)  # what is paid for is delivered
            self._leave(active)

        try:
            try:
                granted = await self._store.reserve(call, self._terms)
            except WattfareError as refusal:
                settled = True  # there is nothing to settle
                if refusal.http_status == 503:
                    # Nobody knows: the database may have heard, and its answer been lost.
                    self._unsettled[call.id] = Outcome(ended="failed")
                raise
            await job.start(granted)
            started()
            if call.stream:
                begun = True
                events = await self._pass_on(active, job, output)
                await settle()
                if not active.detached:
                    await output.end(events)
            else:
                body = await job.body()
                await settle()
                if not active.detached:
                    await output.json(body)
        except asyncio.CancelledError:
            job.meter.left()
            ended, error = "client_gone", active.cut
            if error is None:
                raise
            ended = active.ended
            active.resume()
        except OSError:
            job.meter.left()
            ended = "client_gone"  # some servers say so when they are given something to send
        except WattfareError as failure:
            ended, error = "failed", failure
        except Exception:
            ended = "failed"
            error = WattfareError("The service failed.", status=500)
            log.exception("call failed request_id=%s", call.request_id)
        finally:
            self._active.discard(active)
            active.end()
            try:
                await job.close()
            finally:
                error = await self._settle_or_keep(active, job, ended, settle) or error
        if error is None:
            return
        if active.detached:
            log.warning(
                "call ended without its client: %s request_id=%s",
                describe(error),
                call.request_id,
            )
            return
        if not begun:
            raise error
        log.warning("stream ended early: %s request_id=%s", describe(error), call.request_id)
        await output.end(sse.write_error(error))

    async def _pass_on(self, active: ActiveCall, job: Job, output: Output) -> bytes:
        """Pass on a stream as long as its client is there, and return its last events."""
        await output.begin()
        events = await job.read_events()
        while not job.meter.complete:
            if steady_seconds() >= self._forward_until:
                self._lose()
                await asyncio.sleep(0)  # to hear of it
            if not active.detached:
                try:
                    await output.write(events)
                except OSError:  # some servers say so that the client has left
                    if not active.detach(self._detached_seconds):
                        raise
            events = await job.read_events()
        return events

    async def _settle_or_keep(
        self, active: ActiveCall, job: Job, ended: str, settle: Callable[[], Awaitable[None]]
    ) -> WattfareError | None:
        try:
            await settle()
        except WattfareError as failure:
            # The reservation stands, and is settled when the database is there again.
            self._unsettled[active.call.id] = job.meter.outcome(ended)
            log.error(
                "call not settled: %s request_id=%s", describe(failure), active.call.request_id
            )
            return failure
        finally:
            self._leave(active)
        return None

    def _leave(self, active: ActiveCall) -> None:
        self._ending.discard(active)
        if self._all_ended is not None and not self._ending:
            self._all_ended.set()
