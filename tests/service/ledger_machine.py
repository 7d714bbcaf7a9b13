"""Runs events in any order against a store that several processes share and against the pure rules,
and compares them after each event."""

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
from sqlalchemy import Connection as Sql
from sqlalchemy import insert, select, update
from support.prices import NOON, in_openai_names, provider_cost, small_prices, token_counts

from wattfare_mw.errors import (
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareNotConnectedError,
)
from wattfare_mw.money import usd
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger import rules, schema
from wattfare_mw.service.ledger.schema import ALL_APPS, TAKEN_BACK
from wattfare_mw.service.ledger.store import LEASE_SECONDS, Store
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.records import (
    Account,
    Bounds,
    Connection,
    GrantBudget,
    Granted,
    IdempotencyKey,
    InferenceCall,
    MeterReading,
    OperatorTotals,
    Outcome,
    PriorCall,
    Reservation,
    Terms,
    Totals,
)

USERS = ("u1", "u2")
PAYERS = ("p1", "p2")
PROCESSES = (0, 1)
BEGINNING = datetime(2026, 10, 31, 12, tzinfo=UTC)

amounts = st.integers(0, 100)


class Offer(msgspec.Struct, frozen=True):
    """What a call requests: cost bounds, or a price and the highest number of tokens."""

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


@st.composite
def all_terms(draw: st.DrawFn) -> Terms:
    """Terms with or without the operator's money, with each kind of ceiling or none."""
    shared = st.none() | st.integers(0, 300)
    return Terms(
        operator_pays=draw(st.booleans()),
        ceiling=draw(st.none() | amounts),
        app_ceiling=draw(shared),
        total_ceiling=draw(shared),
    )


def connected(
    connection: Connection | None, cap: int | None, payer: str, funding: str | None
) -> Connection:
    """The connection after this payer approves. The payer may replace another."""
    revocations = 0
    if connection is not None:
        revocations = connection.revocations + (connection.payer_id != payer)
    return Connection(cap, True, revocations, payer, funding)


def revoked_of(connection: Connection | None) -> Connection | None:
    """The connection after a revocation. A connection that is not active stays unchanged."""
    if connection is None or not connection.connected:
        return connection
    return msgspec.structs.replace(
        connection, connected=False, revocations=connection.revocations + 1
    )


class Call:
    """A reservation, as the rules see it."""

    def __init__(
        self,
        order: InferenceCall,
        month: str,
        holder: str,
        granted: int,
        epoch: int,
        offer: Offer,
        payer: str = "",
        funding: str | None = None,
        *,
        counted: bool = False,
    ) -> None:
        self.offer = offer
        self.order = order
        self.month = month
        self.holder = holder
        self.held = Reservation(granted, order.stream, unbounded=order.bounds.unbounded)
        self.tokens = (0, 0)
        self.generation: str | None = None
        self.epoch = epoch
        self.payer = payer
        self.funding = funding
        self.counted = counted


class LedgerMachine(RuleBasedStateMachine):
    """The subclass chooses the store: :meth:`new_store`."""

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
        self.totals: dict[tuple[str, str, str], Totals] = {}
        #: Each payer's view of a user's connection: its cap, and how it ended.
        self.seen: dict[tuple[str, str], tuple[int | None, str | None]] = {}
        #: The payer and state of each funding.
        self.funding: dict[str, tuple[str, str]] = {}
        self.operator: dict[tuple[str, str], Totals] = {}
        self.grants: dict[str, GrantBudget] = {}
        self.calls: dict[str, Call] = {}
        self.ended: dict[str, str] = {}
        self.swept: dict[str, tuple[Call, int, str]] = {}
        self.keys: dict[tuple[str, str], tuple[IdempotencyKey, str, datetime]] = {}
        self.count = 0
        self.steps = 0

    def begin(self) -> None:
        """Prepares what must exist before the first store."""

    def new_store(self) -> Store:
        raise NotImplementedError

    def do(self, job: Any) -> Any:
        return self.runner.run(job)

    def teardown(self) -> None:
        # The next example may use the same database, so no call may stay in flight.
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

    def connection(self, user: str) -> Connection | None:
        found = self.connections.get(user)
        if found is None:
            return None
        valid = self.pays(found.funding_id)
        others = self.spent_by_others(user, found.payer_id, self.month)
        return msgspec.structs.replace(found, funding_valid=valid, others=others)

    def spent_by_others(self, user: str, payer: str, month: str) -> int:
        """What the operator's ceiling counts for this user in addition to this payer's totals."""
        return sum(
            totals.billed + totals.reserved
            for (of_user, other, at), totals in self.totals.items()
            if (of_user, at) == (user, month) and other != payer
        )

    def budget(self, grant: str) -> GrantBudget | None:
        found = self.grants.get(grant)
        if found is None:
            return None
        return msgspec.structs.replace(found, funding_valid=self.pays(found.funding_id))

    def pays(self, funding: str | None) -> bool:
        return funding is None or self.funding[funding][1] == "valid"

    def payer_of(self, user: str) -> str:
        return self.connections[user].payer_id if user in self.connections else ""

    def total(self, user: str) -> Totals:
        """The current payer's total of this month."""
        return self.totals.get((user, self.payer_of(user), self.month), Totals())

    def counted(self, month: str) -> OperatorTotals:
        return OperatorTotals(self.scope(self.app.id, month), self.scope(ALL_APPS, month))

    def scope(self, scope: str, month: str) -> Totals:
        if (scope, month) not in self.operator:
            # Another example may have used the database, with calls of the same month.
            self.operator[scope, month] = self.do(
                self.stores[0].transact(lambda sql: operator_totals(sql, scope, month))
            )
        return self.operator[scope, month]

    def within(self, terms: Terms) -> Terms:
        """Raises the terms by what other examples have left in the database."""
        if terms.total_ceiling is None:
            return terms
        of_all, of_this = self.scope(ALL_APPS, self.month), self.scope(self.app.id, self.month)
        others = of_all.billed - of_this.billed
        return msgspec.structs.replace(terms, total_ceiling=terms.total_ceiling + others)

    @rule(
        data=st.data(),
        user=st.sampled_from(USERS),
        cap=st.none() | amounts,
        payer=st.sampled_from(("", *PAYERS)),
        late=st.sampled_from([0, 0, 0, 1]),
        process=st.sampled_from(PROCESSES),
    )
    def connect(self, data, user: str, cap: int | None, payer: str, late: int, process) -> None:
        """A payer approves and may replace another. Some use another payer's funding or an expired
        approval."""
        funding = data.draw(st.sampled_from([None, *self.funding]))
        before = self.connections.get(user)
        epoch = (before.revocations if before else 0) + late
        connect = self.stores[process].connect(
            self.app.id, user, cap, epoch, payer_id=payer, funding_id=funding
        )
        if funding is not None and self.funding[funding] != (payer, "valid"):
            with pytest.raises(WattfareFundingError):
                self.do(connect)
            return
        assert self.do(connect) == (before is None or not late)
        if before is None or not late:
            self.has_connected(user, cap, payer, funding)

    def has_connected(self, user: str, cap: int | None, payer: str, funding: str | None) -> None:
        self.connections[user] = connected(self.connections.get(user), cap, payer, funding)
        self.has_ended(user, "replaced", but=payer)
        if payer:
            self.seen[payer, user] = (cap, None)

    def has_ended(self, user: str, how: str, but: str | None = None) -> None:
        for (payer, of), (cap, ended) in self.seen.items():
            if of == user and payer != but and ended is None:
                self.seen[payer, of] = (cap, how)

    @rule(
        user=st.sampled_from(USERS),
        cap=st.none() | amounts,
        payer=st.sampled_from([None, "", *PAYERS]),
        only_lower=st.booleans(),
        process=st.sampled_from(PROCESSES),
    )
    def change_cap(self, user, cap, payer, only_lower: bool, process: int) -> None:
        found = self.connections.get(user)
        there = found is not None and found.connected and payer in (None, found.payer_id)
        change = self.stores[process].change_cap(
            self.app.id, user, cap, payer_id=payer, only_lower=only_lower
        )
        assert self.do(change) == there
        if found is None or not there:
            return
        if only_lower:
            cap = rules.least_of(cap, found.cap)
        self.connections[user] = msgspec.structs.replace(found, cap=cap)
        if found.payer_id:
            self.seen[found.payer_id, user] = (cap, None)

    @rule(
        user=st.sampled_from(USERS),
        payer=st.sampled_from([None, None, "", *PAYERS]),
        process=st.sampled_from(PROCESSES),
    )
    def revoke(self, user: str, payer: str | None, process: int) -> None:
        found = self.connections.get(user)
        revoked = revoked_of(found) if payer in (None, self.payer_of(user)) else found
        done = self.do(self.stores[process].revoke(self.app.id, user, payer_id=payer))
        assert done == (revoked != found)
        if revoked is not None and done:
            self.connections[user] = revoked
            self.has_ended(user, "revoked")

    @rule(payer=st.sampled_from(PAYERS), process=st.sampled_from(PROCESSES))
    def add_funding(self, payer: str, process: int) -> None:
        self.count += 1
        name = f"{self.app.id}-f{self.count}"
        self.do(self.stores[process].transact(lambda sql: add_funding(sql, name, payer)))
        self.funding[name] = (payer, "valid")

    @rule(
        user=st.sampled_from(USERS),
        payer=st.sampled_from(PAYERS),
        process=st.sampled_from(PROCESSES),
        terms=all_terms(),
        stop=st.sampled_from(["funding", "grant", "payer", "nothing"]),
    )
    def spend_and_stop(self, user, payer: str, process: int, terms: Terms, stop: str) -> None:
        """A funding pays for a user and a grant. It ends while calls of both are in flight."""
        holder = self.holder(process)
        if holder is None or not self.alive(holder):
            return
        self.add_funding(payer, process)
        funding = f"{self.app.id}-f{self.count}"
        store = self.stores[process]
        assert self.do(store.connect(self.app.id, user, 500, payer_id=payer, funding_id=funding))
        self.has_connected(user, 500, payer, funding)
        now = int(self.now.timestamp())
        grant = GrantBudget(3, 500, now + 10**6, payer_id=payer, funding_id=funding)
        name = f"{self.app.id}-g{self.count}"
        self.do(store.add_grant(self.app.id, name, grant, terms, now))
        self.grants[name] = grant
        for account in (user, name):
            self.call(process, account, Offer(Bounds(0, 5)), terms)
        if stop == "funding":
            assert self.do(store.remove_funding(payer, funding))
            self.has_lost(funding)
        elif stop == "grant":
            assert self.do(store.revoke_grant(self.app.id, name, payer_id=payer))
            self.grants[name] = msgspec.structs.replace(self.grants[name], expires_at=TAKEN_BACK)
        elif stop == "payer":
            assert self.do(store.connect(self.app.id, user, 500))
            self.has_connected(user, 500, "", None)
        renewal = self.do(store.renew())
        self.leases[holder] = self.now + timedelta(seconds=LEASE_SECONDS)
        assert renewal.revoked == self.taken_back(holder)

    @precondition(lambda self: self.funding)
    @rule(data=st.data(), process=st.sampled_from(PROCESSES))
    def refuse_funding(self, data, process: int) -> None:
        """The upstream refuses the key."""
        name = data.draw(st.sampled_from(sorted(self.funding)))
        payer, state = self.funding[name]
        if state == "valid":
            self.do(self.stores[process].transact(lambda sql: refuse_funding(sql, name)))
            self.funding[name] = (payer, "invalid")

    @precondition(lambda self: self.funding)
    @rule(data=st.data(), payer=st.sampled_from(PAYERS), process=st.sampled_from(PROCESSES))
    def remove_funding(self, data, payer: str, process: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.funding)))
        owner, state = self.funding[name]
        removed = self.do(self.stores[process].remove_funding(payer, name))
        assert removed == (payer == owner and state != "removed")
        if removed:
            self.has_lost(name)

    def has_lost(self, name: str) -> None:
        """Notes that this funding has ended, with everything it paid for."""
        owner, _ = self.funding[name]
        self.funding[name] = (owner, "removed")
        for user, found in self.connections.items():
            if found.funding_id == name and found.connected:
                self.connections[user] = revoked_of(found) or found
                self.has_ended(user, "removed")
        for grant, kept in self.grants.items():
            if kept.funding_id == name:
                self.grants[grant] = msgspec.structs.replace(kept, expires_at=TAKEN_BACK)

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), process=st.sampled_from(PROCESSES))
    def revoke_grant(self, data, process: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.grants)))
        assert self.do(self.stores[process].revoke_grant(self.app.id, name))
        self.grants[name] = msgspec.structs.replace(self.grants[name], expires_at=TAKEN_BACK)

    @rule(
        data=st.data(),
        requests=st.integers(1, 3),
        cap=amounts,
        life=st.integers(1, 40),
        process=st.sampled_from(PROCESSES),
        operator_pays=st.booleans(),
        ceiling=st.none() | st.integers(0, 300),
        largest=st.none() | amounts,
    )
    def grant(self, data, requests, cap, life, process, operator_pays, ceiling, largest) -> None:
        self.count += 1
        name = f"{self.app.id}-g{self.count}"
        now = int(self.now.timestamp())
        expires_at = int((self.now + timedelta(days=life)).timestamp())
        funding = data.draw(st.sampled_from([None, *self.funding]))
        payer = data.draw(st.sampled_from(("", *PAYERS)))
        grant = GrantBudget(requests, cap, expires_at, payer_id=payer, funding_id=funding)
        terms = Terms(
            operator_pays=operator_pays,
            grant_ceiling=ceiling,
            grant_default=50,
            grant_max=largest,
        )
        held = sum(
            each.cap
            for each in self.grants.values()
            if each.expires_at > now and each.funding_id is None
        )
        add = self.stores[process].add_grant(self.app.id, name, grant, terms, now)
        if funding is not None and self.funding[funding] != (payer, "valid"):
            with pytest.raises(WattfareFundingError):
                self.do(add)
            return
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
        if operator_pays and funding is None:
            assert kept.cap == min(cap, 50 if largest is None else largest)
            assert held + kept.cap <= ceiling
        else:
            assert kept == grant
        self.grants[name] = kept

    @rule(
        data=st.data(),
        process=st.sampled_from(PROCESSES),
        offer=offers(),
        terms=all_terms(),
        stream=st.booleans(),
        key=st.none()
        | st.builds(IdempotencyKey, st.sampled_from(["k1", "k2"]), st.sampled_from("ab")),
    )
    def reserve(self, data, process, offer, terms, stream, key) -> None:
        # Payers that can pay come first and are drawn more often.
        ready = [user for user in USERS if user in self.connections]
        account = data.draw(st.sampled_from([*ready, *self.grants, *USERS, "g-unknown"]))
        self.call(process, account, offer, self.within(terms), stream=stream, key=key)

    def call(
        self,
        process: int,
        account: str,
        offer: Offer,
        terms: Terms,
        *,
        stream: bool = False,
        key: IdempotencyKey | None = None,
    ) -> str | None:
        """Reserves for a call of this user or grant. Returns its name, or None if it is refused."""
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
        try:
            expected, granted = self.ask_the_rules(process, order, account, terms)
        except WattfareError as refusal:
            self.free_budget_is_not_refused(order, account, terms, refusal)
            self.is_refused(process, order, terms, refusal)
            return None
        paying = self.grants[account] if by_grant else self.connections[account]
        assert self.pays(paying.funding_id)
        answer = self.do(self.stores[process].reserve(order, terms))
        assert answer == Granted(granted, paying.funding_id)
        epoch = 0
        if by_grant:
            self.grants[account] = expected
            totals, cap = expected.totals, expected.cap
        else:
            self.totals[account, paying.payer_id, self.month] = totals = expected
            connection = self.connection(account)
            assert connection is not None
            cap = rules.cap_in_force(connection, terms)
            epoch = self.connections[account].revocations
        assert cap is None or totals.billed + totals.reserved <= cap
        has_ceiling = (terms.app_ceiling, terms.total_ceiling) != (None, None)
        counted = terms.operator_pays and paying.funding_id is None and has_ceiling
        if counted:
            self.is_within_the_ceilings(granted, terms)
        holder = self.holder(process)
        assert holder is not None
        self.calls[order.id] = Call(
            order,
            self.month,
            holder,
            granted,
            epoch,
            offer,
            paying.payer_id,
            paying.funding_id,
            counted=counted,
        )
        if key is not None:
            self.keys[order.account_name, key.name] = (key, order.id, self.now)
        return order.id

    def is_within_the_ceilings(self, granted: int, terms: Terms) -> None:
        for scope, ceiling in (
            (self.app.id, terms.app_ceiling),
            (ALL_APPS, terms.total_ceiling),
        ):
            before = self.scope(scope, self.month)
            after = Totals(before.billed, before.reserved + granted)
            self.operator[scope, self.month] = after
            assert ceiling is None or after.billed + after.reserved <= ceiling

    def ask_the_rules(self, process: int, order: InferenceCall, account: str, terms: Terms) -> Any:
        if not self.alive(self.holder(process)):
            raise WattfareError(
                "The service has lost its connection to the database.", code="upstream", status=503
            )
        if order.key is not None:
            rules.check_key(order.key, self.prior(order))
        if order.grant_hash is not None:
            now = int(self.now.timestamp())
            grant = self.budget(account)
            return rules.reserve_grant(grant, order.bounds, now, terms, self.counted(self.month))
        return rules.reserve(
            self.connection(account),
            self.total(account),
            order.bounds,
            terms,
            int(self.now.timestamp()),
            self.counted(self.month),
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
            paying = self.budget(account)
            if paying is None or paying.requests < 1 or self.now.timestamp() >= paying.expires_at:
                assert isinstance(refusal, WattfareGrantError)
                return
            totals, cap, kind = paying.totals, paying.cap, "grant"
        else:
            paying = self.connection(account)
            if paying is None or not paying.connected:
                assert isinstance(refusal, WattfareNotConnectedError)
                return
            totals, cap = self.total(account), rules.cap_in_force(paying, terms)
            own_money = not terms.operator_pays or paying.funding_id is not None
            ceiling = None if terms.ceiling is None else max(terms.ceiling - paying.others, 0)
            kind = "ceiling" if cap is not None and cap == ceiling and not own_money else "cap"
        if not paying.funding_valid:
            assert isinstance(refusal, WattfareFundingError)
            return
        budgets = [(cap, totals, kind)]
        if terms.operator_pays and paying.funding_id is None:
            budgets += [
                (terms.app_ceiling, self.scope(self.app.id, self.month), "ceiling"),
                (terms.total_ceiling, self.scope(ALL_APPS, self.month), "ceiling"),
            ]
        least = order.bounds.least
        limits = [(cap, totals, kind) for cap, totals, kind in budgets if cap is not None]
        unspent = [(cap - totals.billed, kind) for cap, totals, kind in limits]
        free = [(cap - totals.billed - totals.reserved, kind) for cap, totals, kind in limits]
        assert min(free)[0] < least
        only_in_flight = least <= min(unspent)[0]
        assert (refusal.http_status == 429) == only_in_flight
        # A budget of `needed` would admit the call. What remains is less than that.
        assert refusal.needed_usd == usd(least)
        left = min(each for each, _ in (free if only_in_flight else unspent))
        assert refusal.remaining_usd in (None, usd(max(left, 0)))
        assert refusal.remaining_usd is None or refusal.remaining_usd < refusal.needed_usd
        if len(limits) == 1:  # the rest of the operator's money is not disclosed
            assert (refusal.remaining_usd is None) == (limits[0][0] is not cap)
        kinds = {kind for each, kind in unspent if each == left}
        assert refusal.limited_by in ({"in_flight"} if only_in_flight else kinds)
        if kind == "grant" and refusal.remaining_usd is not None:
            assert refusal.resets_at is None
        else:
            assert rules.month_of(refusal.resets_at) != self.month
            assert rules.month_of(refusal.resets_at - timedelta(seconds=1)) == self.month

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
        """Accounts without this reservation."""
        others = [Account(self.app.id, "u1"), Account(self.app.id, "u2"), Account("other", "u1")]
        return [other for other in others if other != account]

    @precondition(lambda self: any(call.offer.price for call in self.calls.values()))
    @rule(data=st.data(), process=st.sampled_from(PROCESSES), used=token_counts(40))
    def settle_what_is_reported(self, data, process: int, used: TokenCounts) -> None:
        """The upstream reports any usage. The bill follows it, within the reservation."""
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
            where = (str(order.user_id), call.payer, call.month)
            before = self.totals[where]
            self.totals[where], billed = rules.settle(before, call.held.reserved, outcome.cost)
        if call.counted:
            for scope in (self.app.id, ALL_APPS):
                before = self.operator[scope, call.month]
                after, _ = rules.settle(before, call.held.reserved, outcome.cost)
                self.operator[scope, call.month] = after
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
        """Renews with the cost so far of one call, which may by mistake belong to another
        process."""
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
        assert renewal.revoked == self.taken_back(holder)

    def taken_back(self, holder: str | None) -> set[str]:
        """The calls of this process that must be cut off."""
        return {
            name
            for name, call in self.calls.items()
            if call.holder == holder and self.is_taken_back(call)
        }

    def is_taken_back(self, call: Call) -> bool:
        if call.order.grant_hash is not None:
            return self.grants[call.order.grant_hash].expires_at == TAKEN_BACK
        return self.connections[str(call.order.user_id)].revocations != call.epoch

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
                # The recorded cost, never more than the reservation.
                assert (billed, ended) == (min(held.metered, held.reserved), "lost")
            self.swept[name] = (call, billed, ended)
        self.leases = {holder: until for holder, until in self.leases.items() if until > self.now}

    @rule(process=st.sampled_from(PROCESSES))
    def take_over(self, process: int) -> None:
        """Takes over the abandoned streams whose true cost can be looked up."""
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
        terms=all_terms(),
    )
    def correct(self, data, process, cost: int, generated: bool, terms: Terms) -> None:
        """A process whose call was swept turns out to be alive."""
        name = data.draw(st.sampled_from(sorted(self.swept)))
        self.is_corrected(name, process, cost, generated, self.within(terms))

    def is_corrected(self, name: str, process, cost: int, generated: bool, terms: Terms) -> None:
        call, billed, ended = self.swept.pop(name)
        outcome = Outcome(ended="cut_off", generated=generated, cost=cost)
        order, reserved = call.order, call.held.reserved
        cost = cost if generated else 0
        if order.grant_hash is not None:
            grant = self.grants[order.grant_hash]
            totals, cap = grant.totals, grant.cap
        else:
            user = str(order.user_id)
            where = (user, call.payer, call.month)
            totals = self.totals[where]
            cap = self.connections[user].cap
            if self.connections[user].payer_id != call.payer:
                # Another payer has replaced this one. Without a payer, the former cap is unknown.
                cap = self.seen[call.payer, user][0] if call.payer else 0
            if rules.operator_pays(call.funding, terms):
                others = self.spent_by_others(user, call.payer, call.month)
                left = None if terms.ceiling is None else max(terms.ceiling - others, 0)
                cap = rules.least_of(cap, left)
        rooms = [rules.room_under(cap, totals)]
        shared = {self.app.id: terms.app_ceiling, ALL_APPS: terms.total_ceiling}
        if call.counted:
            rooms += [
                rules.room_under(ceiling, self.operator[scope, call.month])
                for scope, ceiling in shared.items()
            ]
        delta = rules.correction(billed, reserved, cost, rules.least_of(*rooms))
        assert 0 <= billed + delta <= reserved
        after = Totals(totals.billed + delta, totals.reserved)
        assert delta <= 0 or cap is None or after.billed + after.reserved <= cap
        store = self.stores[process]
        assert self.do(store.settle(name, order.account, outcome)) is None
        for other in self.other_accounts(order.account):
            assert self.do(store.correct(name, other, outcome, terms)) is None
        assert self.do(store.correct(name, order.account, outcome, terms)) == delta
        assert self.do(store.correct(name, order.account, outcome, terms)) is None
        if call.counted:
            for scope, ceiling in shared.items():
                before = self.operator[scope, call.month]
                corrected = Totals(before.billed + delta, before.reserved)
                self.operator[scope, call.month] = corrected
                most = corrected.billed + corrected.reserved
                assert delta <= 0 or ceiling is None or most <= ceiling
        if order.grant_hash is not None:
            given_back = (ended != "expired" or billed > 0) and not generated
            self.grants[order.grant_hash] = msgspec.structs.replace(
                grant, requests=grant.requests + given_back, totals=after
            )
        else:
            self.totals[where] = after

    @rule(process=st.sampled_from(PROCESSES))
    def crash(self, process: int) -> None:
        """A process dies without a message, and another starts."""
        store = self.stores[process]
        store._holder = None
        self.do(store.close())
        self.stores[process] = self.new_store()
        self.renewed(process)

    @rule(
        process=st.sampled_from(PROCESSES),
        hold=amounts,
        metered=amounts,
        stream=st.booleans(),
        counted=st.booleans(),
        later=st.none() | st.tuples(st.integers(0, 200), st.integers(0, 100)),
    )
    def hold_and_crash(self, process, hold, metered, stream: bool, counted: bool, later) -> None:
        """A process dies during a call whose cost has no bound."""
        holder = self.holder(process)
        if holder is None or not self.alive(holder):
            return
        payer = self.payer_of("u1")
        before = self.total("u1")
        cap = before.billed + before.reserved + 200
        assert self.do(self.stores[process].connect(self.app.id, "u1", cap, payer_id=payer))
        self.has_connected("u1", cap, payer, None)
        most = 10**9
        terms = Terms(operator_pays=counted, app_ceiling=most, total_ceiling=most)
        name = self.call(process, "u1", Offer(Bounds(0, 5).holding(hold)), terms, stream=stream)
        assert name is not None
        call = self.calls[name]
        order, granted = call.order, call.held.reserved
        self.do(self.stores[process].renew([MeterReading(order.id, order.account, metered, 1, 2)]))
        call.tokens, call.held = (1, 2), msgspec.structs.replace(call.held, metered=metered)
        self.leases[holder] = self.now + timedelta(seconds=LEASE_SECONDS)
        self.crash(process)
        self.now += timedelta(seconds=LEASE_SECONDS)
        self.sweep(1 - process, keep_streams=False)
        assert self.swept[order.id][1:] == (min(metered, granted), "lost")
        if later is not None:  # the process was alive after all
            cost, more = later
            counted_so_far = self.scope(self.app.id, call.month)
            room = counted_so_far.billed + counted_so_far.reserved + more
            terms = Terms(operator_pays=counted, app_ceiling=room)
            self.is_corrected(order.id, process, cost, True, terms)

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
            assert connection == self.connection(user)
            # The calls of the current payer only.
            assert totals == self.total(user)

    @invariant()
    def the_rows_prove_the_totals(self) -> None:
        # This check takes most of the time, and an error persists.
        self.steps += 1
        if self.steps % 5 == 0:
            assert self.do(self.stores[1].transact(verify)) == []
            totals, seen = self.do(
                self.stores[1].transact(lambda sql: rows_of_payers(sql, self.app.id))
            )
            assert totals == self.totals
            assert seen == self.seen
            for (scope, month), counted in self.operator.items():
                found = self.do(
                    self.stores[1].transact(
                        lambda sql, at=(scope, month): operator_totals(sql, *at)
                    )
                )
                assert found == counted


# -- actions of other parts of the service, and what is compared


def add_funding(sql: Sql, name: str, payer: str) -> None:
    sql.execute(
        insert(schema.funding).values(
            id=name,
            payer_id=payer,
            kind="key",
            upstream="https://example.test/v1",
            label="a key",
            ciphertext=b"secret",
            encryption_key_id="k",
            state="valid",
            created_at=1,
            checked_at=1,
        )
    )


def refuse_funding(sql: Sql, name: str) -> None:
    table = schema.funding
    sql.execute(update(table).where(table.c.id == name).values(state="invalid"))


def operator_totals(sql: Sql, scope: str, month: str) -> Totals:
    table = schema.operator_totals
    row = sql.execute(
        select(table.c.billed_nanos, table.c.reserved_nanos).where(
            table.c.scope == scope, table.c.month == month
        )
    ).first()
    return Totals() if row is None else Totals(*row)


def rows_of_payers(sql: Sql, app_id: str) -> tuple[dict[Any, Totals], dict[Any, Any]]:
    """The totals of each user and payer, and each payer's view."""
    totals, seen = schema.totals, schema.payer_connections
    return (
        {
            (row.user_id, row.payer_id, row.month): Totals(row.billed_nanos, row.reserved_nanos)
            for row in sql.execute(select(totals).where(totals.c.app_id == app_id))
        },
        {
            (row.payer_id, row.user_id): (row.cap_nanos, row.ended)
            for row in sql.execute(select(seen).where(seen.c.app_id == app_id))
        },
    )
