"""Any order of events, in a store that several processes share and in the pure rules; both say the
same after each."""

from __future__ import annotations

import asyncio
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.prices import NOON, in_openai_names, provider_cost, small_prices, token_counts

from wattfare_mw.errors import (
    WattfareError,
    WattfareGrantError,
    WattfareNotConnectedError,
)
from wattfare_mw.money import usd
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import rules
from wattfare_mw.service.ledger.store import LEASE_SECONDS, Store
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.records import (
    Account,
    Bounds,
    Connection,
    GrantBudget,
    IdempotencyKey,
    InferenceCall,
    MeterReading,
    Outcome,
    PriorCall,
    Reservation,
    Terms,
    Totals,
)

USERS = ("u1", "u2")
PROCESSES = (0, 1)
BEGINNING = datetime(2026, 10, 31, 12, tzinfo=UTC)

amounts = st.integers(0, 100)


class Offer(msgspec.Struct, frozen=True):
    """What a call asks for: bounds, or a price and the most tokens that it can have."""

    bounds: Bounds
    price: Price | None = None
    prompt: int = 0


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    if draw(st.booleans()):
        pair = draw(st.tuples(amounts, amounts))
        bounds = Bounds(min(pair), max(pair), draw(st.booleans()))
        return Offer(bounds.holding(draw(amounts)) if draw(st.booleans()) else bounds)
    price = draw(small_prices)
    prompt, least, more = (draw(st.integers(0, 10)) for _ in range(3))
    bounds = Bounds(price.bound(prompt, least), price.bound(prompt, least + more))
    if draw(st.booleans()):
        bounds = bounds.holding(draw(amounts))
    return Offer(bounds, price, prompt)


def connected(connection: Connection | None, cap: int | None) -> Connection:
    """The connection after an approval with this cap."""
    return Connection(cap, revocations=connection.revocations if connection else 0)


def revoked_of(connection: Connection | None) -> Connection | None:
    """The connection after a revocation. What is not connected stays as it is."""
    if connection is None or not connection.connected:
        return connection
    return Connection(connection.cap, connected=False, revocations=connection.revocations + 1)


class Call:
    """A reservation as the rules have it."""

    def __init__(
        self,
        order: InferenceCall,
        month: str,
        holder: str,
        granted: int,
        epoch: int,
        offer: Offer,
    ) -> None:
        self.offer = offer
        self.order = order
        self.month = month
        self.holder = holder
        self.held = Reservation(granted, order.stream, unbounded=order.bounds.unbounded)
        self.tokens = (0, 0)
        self.generation: str | None = None
        self.epoch = epoch


class LedgerMachine(RuleBasedStateMachine):
    """The subclass says which store: :meth:`new_store`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGINNING
        self.runner = asyncio.Runner()
        self.stores: list[Store] = []
        self.begin()
        self.leases: dict[str, datetime] = {}
        for process in PROCESSES:
            self.stores.append(self.new_store())
            self.renewed(process)
        self.app, _ = new_app("app", "test")
        self.do(self.stores[0].add_app(self.app))
        self.connections: dict[str, Connection] = {}
        self.totals: dict[tuple[str, str], Totals] = {}
        self.grants: dict[str, GrantBudget] = {}
        self.calls: dict[str, Call] = {}
        self.ended: dict[str, str] = {}
        self.swept: dict[str, tuple[Call, int, str]] = {}
        self.keys: dict[tuple[str, str], tuple[IdempotencyKey, str, datetime]] = {}
        self.count = 0
        self.steps = 0

    def begin(self) -> None:
        """What has to be there before the first store."""

    def new_store(self) -> Store:
        raise NotImplementedError

    def do(self, job: Any) -> Any:
        return self.runner.run(job)

    def teardown(self) -> None:
        # The database may serve the next example: nothing in flight is left in it.
        self.now += timedelta(days=4000)
        self.do(self.stores[0].sweep())
        assert self.do(self.stores[0].transact(verify)) == []
        for store in self.stores:
            self.do(store.close())
        self.runner.close()

    @property
    def month(self) -> str:
        return rules.month_of(self.now)

    def holder(self, process: int) -> str | None:
        return self.stores[process]._holder

    def alive(self, holder: str | None) -> bool:
        return holder in self.leases and self.now < self.leases[holder]

    def renewed(self, process: int) -> None:
        assert self.do(self.stores[process].renew()).held
        self.leases[self.holder(process)] = self.now + timedelta(seconds=LEASE_SECONDS)

    @rule(user=st.sampled_from(USERS), cap=st.none() | amounts, process=st.sampled_from(PROCESSES))
    def connect(self, user: str, cap: int | None, process: int) -> None:
        self.do(self.stores[process].connect(self.app.id, user, cap))
        self.connections[user] = connected(self.connections.get(user), cap)

    @rule(user=st.sampled_from(USERS), process=st.sampled_from(PROCESSES))
    def revoke(self, user: str, process: int) -> None:
        self.do(self.stores[process].revoke(self.app.id, user))
        revoked = revoked_of(self.connections.get(user))
        if revoked is not None:
            self.connections[user] = revoked

    @rule(
        requests=st.integers(1, 3),
        cap=amounts,
        life=st.integers(1, 40),
        process=st.sampled_from(PROCESSES),
        operator_pays=st.booleans(),
        ceiling=st.none() | st.integers(0, 300),
        largest=st.none() | amounts,
    )
    def grant(self, requests, cap, life, process, operator_pays, ceiling, largest) -> None:
        self.count += 1
        name = f"{self.app.id}-g{self.count}"
        now = int(self.now.timestamp())
        grant = GrantBudget(requests, cap, int((self.now + timedelta(days=life)).timestamp()))
        terms = Terms(
            operator_pays=operator_pays,
            grant_ceiling=ceiling,
            grant_default=50,
            grant_max=largest,
        )
        held = sum(each.cap for each in self.grants.values() if each.expires_at > now)
        add = self.stores[process].add_grant(self.app.id, name, grant, terms, now)
        try:
            kept = rules.admit_grant(held, grant, terms)
        except WattfareError as refused:
            assert operator_pays
            most = 50 if largest is None else largest
            assert ceiling is None or held + min(cap, most) > ceiling
            with pytest.raises(type(refused), match=re.escape(refused.message)):
                self.do(add)
            return
        self.do(add)
        if operator_pays:
            assert kept.cap == min(cap, 50 if largest is None else largest)
            assert held + kept.cap <= ceiling
        else:
            assert kept == grant
        self.grants[name] = kept

    @rule(
        data=st.data(),
        process=st.sampled_from(PROCESSES),
        offer=offers(),
        ceiling=st.none() | amounts,
        stream=st.booleans(),
        key=st.none()
        | st.builds(IdempotencyKey, st.sampled_from(["k1", "k2"]), st.sampled_from("ab")),
    )
    def reserve(self, data, process, offer, ceiling, stream, key) -> None:
        account = data.draw(st.sampled_from([*USERS, "g-unknown", *self.grants]))
        by_grant = account not in USERS
        self.count += 1
        order = InferenceCall(
            id=f"{self.app.id}-{self.count}",
            app_id=self.app.id,
            user_id=None if by_grant else account,
            grant_hash=account if by_grant else None,
            model="m",
            bounds=offer.bounds,
            request_id="r",
            stream=stream,
            key=key,
        )
        terms = Terms(operator_pays=ceiling is not None, ceiling=ceiling)
        try:
            expected, granted = self.ask_the_rules(process, order, account, terms)
        except WattfareError as refusal:
            self.free_budget_is_not_refused(order, account, terms, refusal)
            self.is_refused(process, order, terms, refusal)
            return
        assert self.do(self.stores[process].reserve(order, terms)).amount == granted
        epoch = 0
        if by_grant:
            self.grants[account] = expected
            totals, cap = expected.totals, expected.cap
        else:
            self.totals[account, self.month] = totals = expected
            cap = rules.cap_in_force(self.connections[account], terms)
            epoch = self.connections[account].revocations
        assert cap is None or totals.billed + totals.reserved <= cap
        holder = self.holder(process)
        assert holder is not None
        self.calls[order.id] = Call(order, self.month, holder, granted, epoch, offer)
        if key is not None:
            self.keys[order.account_name, key.name] = (key, order.id, self.now)

    def ask_the_rules(self, process: int, order: InferenceCall, account: str, terms: Terms) -> Any:
        if not self.alive(self.holder(process)):
            raise WattfareError(
                "The service has lost touch with its database.", code="upstream", status=503
            )
        if order.key is not None:
            rules.check_key(order.key, self.prior(order))
        if order.grant_hash is not None:
            now = int(self.now.timestamp())
            return rules.reserve_grant(self.grants.get(account), order.bounds, now)
        before = self.totals.get((account, self.month), Totals())
        return rules.reserve(
            self.connections.get(account), before, order.bounds, terms, int(self.now.timestamp())
        )

    def is_refused(self, process, order, terms, refusal: WattfareError) -> None:
        with pytest.raises(type(refusal)) as answer:
            self.do(self.stores[process].reserve(order, terms))
        assert answer.value.http_status == refusal.http_status
        assert answer.value.message == refusal.message
        assert answer.value.shortfall == refusal.shortfall

    def prior(self, order: InferenceCall) -> PriorCall | None:
        assert order.key is not None
        known = self.keys.get((order.account_name, order.key.name))
        if known is None or self.now - known[2] >= timedelta(hours=24):
            return None
        return PriorCall(known[0].body, self.ended.get(known[1]))

    def free_budget_is_not_refused(self, order, account, terms, refusal: WattfareError) -> None:
        if refusal.http_status in (400, 409, 422, 503):
            return
        if order.grant_hash is not None:
            grant = self.grants.get(account)
            if grant is None or grant.requests < 1 or self.now.timestamp() >= grant.expires_at:
                assert isinstance(refusal, WattfareGrantError)
                return
            totals, cap = grant.totals, grant.cap
        else:
            connection = self.connections.get(account)
            if connection is None or not connection.connected:
                assert isinstance(refusal, WattfareNotConnectedError)
                return
            totals = self.totals.get((account, self.month), Totals())
            cap = rules.cap_in_force(connection, terms)
        assert cap is not None
        assert totals.billed + totals.reserved + order.bounds.least > cap
        only_in_flight = totals.billed + order.bounds.least <= cap
        assert (refusal.http_status == 429) == only_in_flight
        # What is needed would be let in if it were left, and what is left is no more than that.
        left = cap - totals.billed - (totals.reserved if only_in_flight else 0)
        assert refusal.needed_usd == usd(order.bounds.least)
        assert refusal.remaining_usd == usd(max(left, 0)) < refusal.needed_usd
        budget = "grant"
        if order.grant_hash is None:
            budget = "ceiling" if cap == terms.ceiling else "cap"
        assert refusal.limited_by == ("in_flight" if only_in_flight else budget)
        if order.grant_hash is None:
            assert rules.month_of(refusal.resets_at) != self.month
            assert rules.month_of(refusal.resets_at - timedelta(seconds=1)) == self.month
        else:
            assert refusal.resets_at is None

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        process=st.sampled_from(PROCESSES),
        cost=st.integers(-10, 200) | st.just(10**30),
        generated=st.booleans(),
    )
    def settle(self, data, process: int, cost: int, generated: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        account = self.calls[call].order.account
        outcome = Outcome(ended="completed", generated=generated, cost=cost)
        for other in self.other_accounts(account):
            assert self.do(self.stores[process].settle(call, other, outcome)) is None
        billed = self.settled(call, outcome)
        assert self.do(self.stores[process].settle(call, account, outcome)) == billed
        assert self.do(self.stores[process].settle(call, account, outcome)) is None

    def other_accounts(self, account: Account) -> list[Account]:
        """Payers who have no such reservation."""
        others = [Account(self.app.id, "u1"), Account(self.app.id, "u2"), Account("other", "u1")]
        return [other for other in others if other != account]

    @precondition(lambda self: any(call.offer.price for call in self.calls.values()))
    @rule(data=st.data(), process=st.sampled_from(PROCESSES), used=token_counts(40))
    def settle_what_is_reported(self, data, process: int, used: TokenCounts) -> None:
        """The upstream reports any usage. The bill is its own arithmetic, within the grant."""
        priced = [name for name, call in self.calls.items() if call.offer.price is not None]
        name = data.draw(st.sampled_from(sorted(priced)))
        call = self.calls[name]
        price, granted = call.offer.price, call.held.reserved
        assert price is not None
        meter = Meter(price, call.offer.prompt, NOON)
        meter.granted = granted
        meter.add_usage(in_openai_names(used))
        meter.complete = True
        outcome = meter.outcome("completed")
        billed = self.settled(name, outcome)
        assert self.do(self.stores[process].settle(name, call.order.account, outcome)) == billed
        assert billed == meter.billed
        assert 0 <= billed <= granted
        if used.prompt:
            exact = provider_cost(price, used)
            assert billed == min(math.ceil(exact), granted)

    def settled(self, name: str, outcome: Outcome) -> int:
        call = self.calls.pop(name)
        order = call.order
        if order.grant_hash is not None:
            grant, billed = rules.settle_grant(
                self.grants[order.grant_hash],
                call.held.reserved,
                outcome.cost,
                generated=outcome.generated,
            )
            self.grants[order.grant_hash] = grant
        else:
            where = (str(order.user_id), call.month)
            before = self.totals[where]
            self.totals[where], billed = rules.settle(before, call.held.reserved, outcome.cost)
        self.ended[name] = outcome.ended
        if not outcome.generated:
            self.keys = {key: value for key, value in self.keys.items() if value[1] != name}
        return billed

    @rule(
        data=st.data(),
        process=st.sampled_from(PROCESSES),
        more=amounts,
        generation=st.none() | st.just("gen-1"),
        right_account=st.sampled_from([True, True, True, False]),
    )
    def renew(self, data, process: int, more: int, generation: str | None, right_account) -> None:
        """With what one call has cost so far: one's own, or by mistake another's."""
        metered = []
        name = None
        if self.calls:
            name = data.draw(st.sampled_from(sorted(self.calls)))
            call = self.calls[name]
            account = (
                call.order.account if right_account else self.other_accounts(call.order.account)[0]
            )
            metered = [MeterReading(name, account, call.held.metered + more, 1, 2, generation)]
        holder = self.holder(process)
        renewal = self.do(self.stores[process].renew(metered))
        if holder is not None and not self.alive(holder):
            assert not renewal.held
            assert self.holder(process) is None
            return
        assert renewal.held
        self.leases[self.holder(process)] = self.now + timedelta(seconds=LEASE_SECONDS)
        held = name is not None and self.calls[name].holder == holder
        if holder is not None and name is not None and held and right_account:
            call = self.calls[name]
            call.tokens = (1, 2)
            call.generation = generation or call.generation
            call.held = msgspec.structs.replace(call.held, metered=metered[0].cost)
        assert renewal.revoked == {
            name
            for name, call in self.calls.items()
            if call.holder == holder
            and call.order.user_id is not None
            and self.connections[call.order.user_id].revocations != call.epoch
        }

    @rule(process=st.sampled_from(PROCESSES), keep_streams=st.booleans())
    def sweep(self, process: int, keep_streams: bool) -> None:
        left = [
            name
            for name, call in self.calls.items()
            if not self.alive(call.holder) and not (keep_streams and call.generation)
        ]
        assert self.do(self.stores[process].sweep(keep_streams=keep_streams)) == len(left)
        for name in left:
            held = self.calls[name].held
            cost, ended = rules.expire(held)
            generated = cost > 0 or not held.stream or held.unbounded
            call = self.calls[name]
            billed = self.settled(name, Outcome(ended=ended, generated=generated, cost=cost))
            if held.unbounded:
                # What was recorded, and never more than is held.
                assert (billed, ended) == (min(held.metered, held.reserved), "lost")
            self.swept[name] = (call, billed, ended)
        self.leases = {holder: until for holder, until in self.leases.items() if until > self.now}

    @rule(process=st.sampled_from(PROCESSES))
    def take_over(self, process: int) -> None:
        """Of the streams that nobody holds, those whose true cost can be asked for."""
        holder = self.holder(process)
        taken = self.do(self.stores[process].take_over())
        if holder is None:
            assert taken == []
            return
        self.leases = {name: until for name, until in self.leases.items() if until > self.now}
        if not self.alive(holder):
            assert taken == []
            return
        left = {
            name
            for name, call in self.calls.items()
            if not self.alive(call.holder) and call.generation
        }
        assert {stream.reservation_id for stream in taken} == left
        for stream in taken:
            call = self.calls[stream.reservation_id]
            assert stream.account == call.order.account
            assert stream.generation_id == call.generation
            cost, ended = rules.expire(call.held)
            assert (stream.outcome.cost, stream.outcome.ended) == (cost, ended)
            assert (stream.outcome.prompt_tokens, stream.outcome.completion_tokens) == call.tokens
            call.holder = holder

    @precondition(lambda self: self.swept)
    @rule(
        data=st.data(),
        process=st.sampled_from(PROCESSES),
        cost=st.integers(-10, 200) | st.just(10**30),
        generated=st.booleans(),
        ceiling=st.none() | amounts,
    )
    def correct(self, data, process, cost: int, generated: bool, ceiling: int | None) -> None:
        """The process of a call that was swept is alive after all."""
        name = data.draw(st.sampled_from(sorted(self.swept)))
        call, billed, ended = self.swept.pop(name)
        terms = Terms(operator_pays=ceiling is not None, ceiling=ceiling)
        outcome = Outcome(ended="cut_off", generated=generated, cost=cost)
        order, reserved = call.order, call.held.reserved
        cost = cost if generated else 0
        if order.grant_hash is not None:
            grant = self.grants[order.grant_hash]
            totals, cap = grant.totals, grant.cap
        else:
            where = (str(order.user_id), call.month)
            totals = self.totals[where]
            cap = rules.cap_in_force(self.connections[str(order.user_id)], terms)
        delta = rules.correction(billed, reserved, cost, rules.room_under(cap, totals))
        assert 0 <= billed + delta <= reserved
        after = Totals(totals.billed + delta, totals.reserved)
        assert delta <= 0 or cap is None or after.billed + after.reserved <= cap
        store = self.stores[process]
        assert self.do(store.settle(name, order.account, outcome)) is None
        for other in self.other_accounts(order.account):
            assert self.do(store.correct(name, other, outcome, terms)) is None
        assert self.do(store.correct(name, order.account, outcome, terms)) == delta
        assert self.do(store.correct(name, order.account, outcome, terms)) is None
        if order.grant_hash is not None:
            given_back = (ended != "expired" or billed > 0) and not generated
            self.grants[order.grant_hash] = GrantBudget(
                grant.requests + given_back, grant.cap, grant.expires_at, after
            )
        else:
            self.totals[where] = after

    @rule(process=st.sampled_from(PROCESSES))
    def crash(self, process: int) -> None:
        """It says nothing to anybody; another one begins."""
        store = self.stores[process]
        store._holder = None
        self.do(store.close())
        self.stores[process] = self.new_store()
        self.renewed(process)

    @rule(process=st.sampled_from(PROCESSES), hold=amounts, metered=amounts, stream=st.booleans())
    def hold_and_crash(self, process: int, hold: int, metered: int, stream: bool) -> None:
        """A process dies in the middle of a call whose cost has no bound."""
        holder = self.holder(process)
        if holder is None or not self.alive(holder):
            return
        before = self.totals.get(("u1", self.month), Totals())
        self.connect("u1", before.billed + before.reserved + 200, process)
        self.count += 1
        order = InferenceCall(
            id=f"{self.app.id}-{self.count}",
            app_id=self.app.id,
            user_id="u1",
            model="m",
            bounds=Bounds(0, 5).holding(hold),
            request_id="r",
            stream=stream,
        )
        totals, granted = self.ask_the_rules(process, order, "u1", Terms())
        assert self.do(self.stores[process].reserve(order, Terms())).amount == granted
        self.totals["u1", self.month] = totals
        epoch = self.connections["u1"].revocations
        offer = Offer(order.bounds)
        call = Call(order, self.month, holder, granted, epoch, offer)
        self.calls[order.id] = call
        self.do(self.stores[process].renew([MeterReading(order.id, order.account, metered, 1, 2)]))
        call.tokens, call.held = (1, 2), msgspec.structs.replace(call.held, metered=metered)
        self.leases[holder] = self.now + timedelta(seconds=LEASE_SECONDS)
        self.crash(process)
        self.now += timedelta(seconds=LEASE_SECONDS)
        self.sweep(1 - process, keep_streams=False)
        assert self.swept[order.id][1:] == (min(metered, granted), "lost")

    @rule(process=st.sampled_from(PROCESSES))
    def restart(self, process: int) -> None:
        holder = self.holder(process)
        self.do(self.stores[process].close())
        self.leases.pop(holder, None)
        self.stores[process] = self.new_store()
        self.renewed(process)

    @rule(process=st.sampled_from(PROCESSES))
    def begin_anew(self, process: int) -> None:
        holder = self.holder(process)
        if holder is None or not self.alive(holder):
            self.do(self.stores[process].renew())
            if self.holder(process) is None:
                self.renewed(process)
            else:
                until = self.now + timedelta(seconds=LEASE_SECONDS)
                self.leases[self.holder(process)] = until

    @rule(
        time=st.integers(1, 20).map(lambda n: timedelta(days=n))
        | st.integers(1, 4000).map(lambda n: timedelta(milliseconds=n))
    )
    def time_passes(self, time: timedelta) -> None:
        self.now += time

    @invariant()
    def the_store_says_what_the_rules_say(self) -> None:
        for user in USERS:
            connection, totals = self.do(self.stores[0].account(self.app.id, user))
            assert connection == self.connections.get(user)
            assert totals == self.totals.get((user, self.month), Totals())

    @invariant()
    def the_rows_prove_the_totals(self) -> None:
        # It takes most of the time, and what is wrong stays wrong.
        self.steps += 1
        if self.steps % 5 == 0:
            assert self.do(self.stores[1].transact(verify)) == []
