"""Runs one call from its reservation to its settlement.

The settlement is in a ``finally`` block, and comes before the client sees the end of the answer.
The store completes it even if the task is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from ... import money, sse
from ...errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareRateLimitError,
)
from ...logs import Field, LogEvent, describe, get_logger, log_event
from ..errors import lead_to_budget, lease_lost, not_answered, revoked
from ..ledger import rules
from ..ledger.clock import steady_seconds
from ..ledger.store import LEASE_SECONDS, Store
from ..models.credential import Credential, PayerKeys
from ..models.provider import Job
from ..models.upstream_errors import KeyRefusedError
from ..records import (
    DETACHED_SECONDS,
    Account,
    Granted,
    InferenceCall,
    MeterReading,
    Outcome,
    Terms,
)
from .true_costs import OpenQuestion, TrueCosts
from .waiting import BudgetQueues

#: How long calls may run after the last renewal of the lease, in seconds. It is well below the
#: length of a lease, so that another process cannot settle a call that is still running.
FORWARD_SECONDS = LEASE_SECONDS - 2

log = get_logger("wattfare_mw.service", show_messages=False)


#: Called with the outcome of a call and the bill in nano-dollars. The bill is None if another
#: process has settled the call.
Settled = Callable[[Outcome, int | None], None]


class Output(Protocol):
    """The destination of an answer."""

    async def begin(self) -> None:
        """Send the headers of an event stream."""
        ...

    async def write(self, block: bytes) -> None:
        """Send complete events."""
        ...

    async def end(self, block: bytes) -> None:
        """End the event stream, with these last events."""
        ...

    async def json(self, body: bytes) -> None:
        """Send a whole answer."""
        ...


class ActiveCall:
    """A running call. Other code can cut it off."""

    def __init__(self, call: InferenceCall, job: Job) -> None:
        self.call = call
        self._job = job
        self._recorded = 0
        self._recorded_id: str | None = None
        self.cut: WattfareError | None = None
        self.ended = "cut_off"  # how it ends if it is cut off
        self.detached = False
        self.funding_id: str | None = None  # the payer's funding; None for the operator's
        self.waits = False  # True while it waits for its account's budget
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None

    def stop(self, error: WattfareError, ended: str = "cut_off") -> None:
        """End the call, and send this error to its client."""
        if self.cut is None and self._task is not None:
            self.cut, self.ended = error, ended
            self._task.cancel()

    def detach(self, seconds: float) -> bool:
        """Record that the client has left. Returns True if the call continues, for at most this
        time."""
        # If the prompt was not sent yet, the call costs nothing, so end it.
        if not self.detached and self._job.detaches and self._job.meter.sent:
            self.detached = True
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self.stop, not_answered(seconds), "timed_out")
        return self.detached

    def end(self) -> None:
        """Cancel the timer, because the call has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def reading(self) -> MeterReading | None:
        """The cost of a stream so far. None if it has grown too little to be recorded, if nothing
        is reserved yet, or if the call is not a stream."""
        meter, name = self._job.meter, self._job.generation_id
        reserved = meter.granted
        if not self.call.stream or reserved is None:
            return None
        unbounded = self.call.bounds.unbounded
        # For an unknown cost, the meter returns the whole hold, but the cost so far is less.
        cost = min(meter.cost(), reserved) if meter.is_known or not unbounded else 0
        if not rules.is_worth_recording(reserved, self._recorded, cost, unbounded=unbounded) and (
            name is None or name == self._recorded_id
        ):
            return None
        now = meter.outcome("")
        return MeterReading(
            self.call.id, self.call.account, cost, now.prompt_tokens, now.completion_tokens, name
        )

    def note(self, reading: MeterReading) -> None:
        """Remember that this reading is in the database."""
        self._recorded, self._recorded_id = reading.cost, reading.generation_id

    def question(self, ended: str) -> OpenQuestion | None:
        """An open question about the true cost of this call. None unless the call is a stream that
        broke off, and the provider keeps records."""
        meter, name = self._job.meter, self._job.generation_id
        if meter.complete or name is None or not self.call.stream:
            return None
        return OpenQuestion(
            self.call.id,
            self.call.account,
            name,
            meter.outcome(ended),
            ended,
            funding_id=self.funding_id,
        )

    def resume(self) -> None:
        """Undo the cancellation of the task, so that the call can be settled."""
        if self._task is not None:
            self._task.uncancel()


class CallRunner:
    """Runs calls, and tracks the calls in flight. They are covered by a lease, which :meth:`renew`
    must extend.

    Args:
        true_costs: asks the provider for the cost of streams that were not read to their end. None
            if the provider keeps no records.
        keys: the keys of payers. None if payers cannot have keys.
        needs_funding: True to refuse calls that no payer's key pays for.
        detached_seconds: how long a call may continue without its client, in seconds.
        overrun: called with the part of a stream's cost above its reservation, in nano-dollars, if
            only the provider's record shows this part. If the answer shows it, the job counts it.
        public_url: the base URL of the service's pages.
    """

    def __init__(
        self,
        store: Store,
        terms: Terms,
        true_costs: TrueCosts | None = None,
        *,
        keys: PayerKeys | None = None,
        needs_funding: bool = False,
        detached_seconds: float = DETACHED_SECONDS,
        overrun: Callable[[int], None] = lambda nanos: None,
        public_url: str = "",
    ) -> None:
        self._public_url = public_url
        self._overrun = overrun
        self._store = store
        self._terms = terms
        self._true_costs = true_costs
        self._keys = keys
        self._needs_funding = needs_funding
        self._detached_seconds = detached_seconds
        self._active: set[ActiveCall] = set()
        self._ending: set[ActiveCall] = set()  # in flight, or being settled
        self._all_ended: asyncio.Event | None = None  # set while `close` waits
        self._forward_until = -math.inf
        # Calls that could not be settled, because the database was unavailable. Their number is
        # limited, because new calls are refused without a database.
        self._unsettled: dict[str, tuple[Account, Outcome]] = {}
        # Ended streams whose true cost is unknown, by reservation, and the tasks that ask for it.
        self._questions: dict[str, OpenQuestion] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._queues = BudgetQueues()
        self._stopping = False

    def cut_off(self, error: WattfareError, is_affected: Callable[[InferenceCall], bool]) -> None:
        """End the calls in flight for which ``is_affected`` returns True. Each client gets
        ``error``."""
        for active in list(self._active):
            if is_affected(active.call):
                active.stop(error)

    def detach(self, call_id: str) -> bool:
        """Record that the client of this call has left. Returns True if the call continues, because
        the provider charges for the whole answer anyway. Otherwise, the caller must cancel the
        task."""
        for active in self._active:
            if active.call.id == call_id:
                return active.detach(self._detached_seconds)
        return call_id in self._questions

    @property
    def waiting(self) -> int:
        """How many calls wait for their budget."""
        return len(self._queues)

    def stop_waiting(self, error: WattfareError) -> None:
        """End the calls that wait for their budget. Each client gets ``error``."""
        for active in list(self._active):
            if active.waits:
                active.stop(error)

    def stop(self, error: WattfareError) -> None:
        """End all calls, and stop asking for true costs. Each client gets ``error``. Another
        process will ask for the costs, or this one after a restart."""
        self._stopping = True
        for task in self._asking:
            task.cancel()
        self.cut_off(error, lambda _: True)

    async def close(self, error: WattfareError) -> None:
        """End all calls, and wait until each is settled. This does not wait for clients to read
        their errors."""
        self.stop(error)
        if self._asking:
            await asyncio.wait(self._asking)
        if self._ending:
            self._all_ended = asyncio.Event()
            await self._all_ended.wait()

    async def renew(self) -> None:
        """Renew the lease, record the cost of streams, and cut off calls whose connection was
        revoked. Call this regularly. Without a renewal, calls are cut off before the lease ends,
        because then another process may settle them.

        Raises:
            WattfareError: 503; the database is unavailable.
        """
        began = steady_seconds()
        streams = (*self._active, *self._questions.values())
        readings = {stream: each for stream in streams if (each := stream.reading())}
        renewal = await self._store.renew(list(readings.values()))
        if not renewal.held:
            self._lose_lease()
            return
        # `began` is from before the query, and the database starts the lease during the query. So
        # the lease ends later than this.
        self._forward_until = began + FORWARD_SECONDS
        for stream, each in readings.items():
            stream.note(each)
        if renewal.revoked:
            self.cut_off(revoked(), lambda call: call.id in renewal.revoked)
        await self._settle_unsettled()

    def check_lease(self) -> None:
        """Check that the lease has not ended.

        Raises:
            WattfareError: 503; the lease has ended, and all calls in flight were cut off.
        """
        if steady_seconds() >= self._forward_until:
            self._lose_lease()
            raise lease_lost()

    @property
    def seconds_left(self) -> float:
        """How long calls may continue without a renewal, in seconds."""
        return self._forward_until - steady_seconds()

    def _lose_lease(self) -> None:
        self._forward_until = -math.inf
        self.cut_off(lease_lost(), lambda _: True)

    async def _settle_unsettled(self) -> None:
        for reservation_id, (account, outcome) in list(self._unsettled.items()):
            try:
                billed = await self._settle(reservation_id, account, outcome)
            except WattfareError:
                raise
            except Exception:  # one call must not delay the others
                log.exception("call not settled: reservation=%s", reservation_id)
                continue
            del self._unsettled[reservation_id]
            if billed is not None:
                fields: dict[str, Field] = {
                    "app": account.app_id,
                    "user": account.user_id,
                    "grant": account.grant_hash and account.grant_hash[:16],
                    "prompt_tokens": outcome.prompt_tokens,
                    "completion_tokens": outcome.completion_tokens,
                    "cost_usd": money.usd(billed),
                    "ended": outcome.ended,
                    "reservation": reservation_id,
                }
                log_event(log, LogEvent("a call is settled late", fields))

    async def _settle(self, reservation_id: str, account: Account, outcome: Outcome) -> int | None:
        """Returns the bill, in nano-dollars; None if another process has settled the call."""
        billed = await self._store.settle(reservation_id, account, outcome)
        if billed is not None:
            self._queues.freed(account)
            return billed
        # Another process settled the call, because this one did not renew its lease in time.
        corrected = await self._store.correct(reservation_id, account, outcome, self._terms)
        if corrected is not None:
            log.warning(
                "a call was settled by another process, and is corrected: reservation=%s",
                reservation_id,
            )
        return None

    async def sweep(self) -> tuple[int, int]:
        """Settle the calls of dead processes. Returns the number of settled calls, and the number
        of streams that wait for the provider's record."""
        if self._true_costs is None:
            return await self._store.sweep(), 0
        swept = await self._store.sweep(keep_streams=True)
        taken = [] if self._stopping else await self._store.take_over()
        for stream in taken:
            # The stream may be from an expired lease of this process, which already asks for its
            # cost.
            if stream.reservation_id not in self._questions:
                self._ask(
                    OpenQuestion(
                        stream.reservation_id,
                        stream.account,
                        stream.generation_id,
                        stream.outcome,
                        if_reported="recovered",
                        funding_id=stream.funding_id,
                        is_recorded=True,
                    )
                )
        return swept, len(taken)

    def _ask(
        self, question: OpenQuestion, settled: Settled = lambda outcome, billed: None
    ) -> asyncio.Task[None] | None:
        """Start a task that settles a stream when its true cost is known, or when the provider has
        not reported it in time. Until then, the reservation stays. Returns the task, or None if
        this process is stopping."""
        self._questions[question.reservation_id] = question
        if self._stopping or self._true_costs is None:
            return None
        task = asyncio.create_task(self._settle_answered(question, self._true_costs, settled))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _settle_answered(
        self, question: OpenQuestion, true_costs: TrueCosts, settled: Settled
    ) -> None:
        # If this task is cancelled, the question stays open. The last renewal then stores the
        # stream's cost and its id at the provider, so that another process can ask.
        true_cost = await true_costs.ask(question.generation_id, question.funding_id)
        outcome = question.answered(true_cost)
        this, account = question.reservation_id, question.account
        try:
            billed = await self._settle(this, account, outcome)
            settled(outcome, billed)
            if true_cost is not None and billed is not None and true_cost > billed:
                self._overrun(true_cost - billed)
        except WattfareError as failure:
            self._unsettled[this] = account, outcome
            log.error("call not settled: %s reservation=%s", describe(failure), this)
        finally:
            del self._questions[this]

    async def _reserve_in_turn(self, active: ActiveCall, job: Job, wait: float) -> Granted:
        """Reserve for a call. If only other calls of the same account hold the budget, wait for
        them for up to ``wait`` seconds. Returns the amount, and the funding that pays."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        with self._queues.place(active.call.account) as place:
            while True:
                left = until - loop.time()
                if place.is_first or left <= 0:
                    place.clear()
                    try:
                        return await self._reserve(active.call, job)
                    except WattfareError as refusal:
                        if refusal.limited_by != rules.IN_FLIGHT or left <= 0:
                            raise
                active.waits = True
                try:
                    await place.wait(left)
                finally:
                    active.waits = False

    async def _explain(self, refusal: WattfareError, account: Account) -> None:
        """Add the age of the oldest call in flight to the error."""
        if refusal.limited_by == rules.IN_FLIGHT:
            with suppress(WattfareError):
                rules.in_flight_for(refusal, await self._store.oldest_call(account))

    async def run(
        self,
        call: InferenceCall,
        job: Job,
        output: Output,
        started: Callable[[], None] = lambda: None,
        *,
        settled: Settled = lambda outcome, billed: None,
        wait: float = 0,
    ) -> None:
        """Run a call. Use a separate task for each call. If the client leaves, call :meth:`detach`,
        and cancel the task if it returns False.

        Args:
            wait: how long to wait if other calls of this account hold the budget, in seconds.
            started: called when the upstream has received the request. From then on, the job does
                not need the request, so its memory can be freed.
            settled: called when the call is settled.

        Raises:
            WattfareError: the call failed or was refused before anything was sent to the client.
        """
        self.check_lease()
        active = ActiveCall(call, job)
        # Register the call before its reservation, so that a revocation in between cuts it off.
        self._active.add(active)
        self._ending.add(active)
        begun = False
        is_settled = False
        ended = "completed"
        error: WattfareError | None = None
        asking: asyncio.Task[None] | None = None

        async def settle() -> None:
            nonlocal is_settled
            if is_settled:
                return
            outcome = job.meter.outcome(ended)
            settled(outcome, await self._settle(call.id, call.account, outcome))
            is_settled = True
            self._active.discard(active)  # the answer is paid for, so it must be delivered
            self._mark_ended(active)

        try:
            try:
                if wait > 0:
                    granted = await self._reserve_in_turn(active, job, wait)
                else:
                    granted = await self._reserve(call, job)
            except WattfareError as refusal:
                is_settled = True  # there is nothing to settle
                if refusal.http_status == 503:
                    # The result is unknown: the database may have committed before its answer was
                    # lost.
                    self._unsettled[call.id] = call.account, Outcome(ended="failed")
                await self._explain(refusal, call.account)
                raise
            active.funding_id = granted.funding_id
            await job.start(granted.amount, await self._credential(granted.funding_id))
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
            job.meter.client_left()
            ended, error = "client_gone", active.cut
            if error is None:
                raise
            ended = active.ended
            active.resume()
        except OSError:
            job.meter.client_left()
            ended = "client_gone"  # some servers raise this on a write
        except WattfareError as failure:
            ended, error = "failed", failure
            if isinstance(failure, KeyRefusedError) and active.funding_id is not None:
                await self._refused(active.funding_id)
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
                question = (
                    None if is_settled or self._true_costs is None else active.question(ended)
                )
                if question is None:
                    error = await self._settle_or_keep(active, job, ended, settle) or error
                else:
                    asking = self._ask(question, settled)
                    self._mark_ended(active)
            # The call counts as running until it is settled. Its client gets the error first.
            if asking is not None and error is None:
                await asyncio.wait({asking})
        if error is None:
            return
        try:
            await self._send_error(error, active, output, begun=begun)
        finally:
            if asking is not None:
                await asyncio.wait({asking})

    async def _reserve(self, call: InferenceCall, job: Job) -> Granted:
        """Reserve for this call. If the budget does not cover its bounds, compute closer bounds and
        try again. Returns the amount, and the funding that pays."""
        try:
            granted = await self._store.reserve(call, self._terms)
        except (WattfareBudgetExceededError, WattfareGrantError, WattfareRateLimitError):
            bounds = await job.tighten()
            if bounds is None or bounds.least >= call.bounds.least:
                raise
            closer = msgspec.structs.replace(call, bounds=bounds)
            return await self._store.reserve(closer, self._terms)
        if granted.amount < call.bounds.most:
            await job.tighten()  # with closer bounds, the limit is lowered less
        return granted

    async def _credential(self, funding_id: str | None) -> Credential | None:
        """The key that pays. None for the operator's key."""
        if funding_id is None:
            if self._needs_funding:
                raise WattfareFundingError(
                    "This connection has no funding. Connect a budget again, and choose a way to"
                    " pay."
                )
            return None
        if self._keys is None:
            raise WattfareFundingError("The service cannot read the keys of payers.")
        return await self._keys.credential(funding_id)

    async def _refused(self, funding_id: str) -> None:
        """Record that the upstream has refused the key of this funding."""
        assert self._keys is not None
        try:
            await self._keys.refused(funding_id)
        except WattfareError as failure:
            # The next call uses the key again, and the upstream refuses it again.
            log.error("could not record that a key was refused: %s", describe(failure))

    async def _send_error(
        self, error: WattfareError, active: ActiveCall, output: Output, *, begun: bool
    ) -> None:
        """Send the error that ended a call to its client, if the client has not left."""
        call = active.call
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
        shown_error = lead_to_budget(error, self._public_url)
        await output.end(sse.write_error(shown_error, call.request_id))

    async def _pass_on(self, active: ActiveCall, job: Job, output: Output) -> bytes:
        """Pass on a stream until its client leaves. Returns the last events."""
        await output.begin()
        events = await job.read_events()
        while not job.meter.complete:
            if steady_seconds() >= self._forward_until:
                self._lose_lease()
                await asyncio.sleep(0)  # let the cancellation arrive
            if not active.detached:
                try:
                    await output.write(events)
                except OSError:  # some servers raise OSError if the client has left
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
            # The reservation stays. It is settled when the database is available again.
            self._unsettled[active.call.id] = active.call.account, job.meter.outcome(ended)
            log.error(
                "call not settled: %s request_id=%s", describe(failure), active.call.request_id
            )
            return failure
        finally:
            self._mark_ended(active)
        return None

    def _mark_ended(self, active: ActiveCall) -> None:
        self._ending.discard(active)
        if self._all_ended is not None and not self._ending:
            self._all_ended.set()
