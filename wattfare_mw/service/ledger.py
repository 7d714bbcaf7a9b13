"""The ledger in SQL, for a database with one writer at a time: each function reads, asks the rules
and writes, inside the one transaction of the connection that it is given. Totals change with the
rows that they sum up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection as Sql
from sqlalchemy import and_, bindparam, delete, exists, insert, select, update

from ..errors import WattfareError
from . import queries, rules, schema
from .orders import Metered, Order, Outcome, Renewal
from .queries import one, seconds
from .refusals import not_available
from .rules import Grant, Held, Prior, Terms

#: The most that a transaction settles of what others left behind.
SWEEP_BATCH = 100
#: What the database's integers hold; a cost beyond is more than any reservation anyway.
MAX_INTEGER = 2**63 - 1


def reserve(sql: Sql, order: Order, terms: Terms, holder: str, now: datetime) -> int:
    """Reserve what the call may cost, and say how much that is.

    Raises:
        WattfareError: the refusal, as the rules give it; nothing has changed.
    """
    if not _holds(sql, holder, now):
        raise lease_lost()
    if order.key is not None:
        rules.check_key(order.key, _prior(sql, order, now))
    month = rules.month_of(now)
    revocations = 0
    if order.grant_hash is not None:
        before = queries.grant(sql, order.app_id, order.grant_hash)
        after, granted = rules.reserve_grant(before, order.bounds, seconds(now))
        queries.write_grant(sql, order.grant_hash, after)
    else:
        user_id = cast("str", order.user_id)
        connection = queries.connection(sql, order.app_id, user_id)
        totals = queries.totals_of(sql, order.app_id, user_id, month)
        totals, granted = rules.reserve(connection, totals, order.bounds, terms)
        queries.write_totals(sql, order.app_id, user_id, month, totals)
        revocations = connection.revocations if connection else 0
    sql.execute(
        insert(schema.reservations).values(
            id=order.id,
            app_id=order.app_id,
            user_id=order.user_id,
            grant_hash=order.grant_hash,
            month=month,
            model=order.model,
            reserved_nanos=granted,
            reserved_at=seconds(now),
            request_id=order.request_id,
            holder=holder,
            stream=order.stream,
            revocations=revocations,
        )
    )
    if order.key is not None:
        table = schema.idempotency
        sql.execute(delete(table).where(_key(order)))  # one that has served its time
        sql.execute(
            insert(table).values(
                app_id=order.app_id,
                payer=order.payer,
                key_hash=order.key.name,
                body_hash=order.key.body,
                reservation_id=order.id,
                created_at=seconds(now),
            )
        )
    return granted


def settle(sql: Sql, reservation_id: str, outcome: Outcome, now: datetime) -> int | None:
    """End a reservation and bill its outcome, in the month in which it was reserved.

    Returns what was billed; None where there is no such reservation (any more): settling twice
    changes nothing.
    """
    table = schema.reservations
    row = one(sql.execute(select(table).where(table.c.id == reservation_id)).first())
    if row is None:
        return None
    sql.execute(delete(table).where(table.c.id == reservation_id))
    if row.grant_hash is not None:
        before = cast("Grant", queries.grant(sql, row.app_id, row.grant_hash))
        after, billed = rules.settle_grant(
            before, row.reserved_nanos, outcome.cost, generated=outcome.generated
        )
        queries.write_grant(sql, row.grant_hash, after)
    else:
        totals = queries.totals_of(sql, row.app_id, row.user_id, row.month)
        totals, billed = rules.settle(totals, row.reserved_nanos, outcome.cost)
        queries.write_totals(sql, row.app_id, row.user_id, row.month, totals)
    sql.execute(
        insert(schema.ledger).values(
            reservation_id=reservation_id,
            reserved_at=row.reserved_at,
            settled_at=seconds(now),
            app_id=row.app_id,
            user_id=row.user_id,
            grant_hash=row.grant_hash,
            month=row.month,
            model=row.model,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            reserved_nanos=row.reserved_nanos,
            billed_nanos=billed,
            claimed_nanos=outcome.claimed,
            ended=outcome.ended,
            request_id=row.request_id,
        )
    )
    if not outcome.generated:
        # Nothing came of the call, so that its key may be used again.
        keys = schema.idempotency
        sql.execute(delete(keys).where(keys.c.reservation_id == reservation_id))
    return billed


def begin(sql: Sql, holder: str, lease: float, now: datetime) -> Renewal:
    """Begin a process's lease."""
    sql.execute(insert(schema.holders).values(id=holder, expires_at_ms=_until(lease, now)))
    return Renewal(held=True)


def renew(
    sql: Sql, holder: str, metered: Sequence[Metered], lease: float, now: datetime
) -> Renewal:
    """Prolong a process's lease, and note what its streams have cost. One that has run out is not
    prolonged: somebody may be settling its calls already."""
    if not _holds(sql, holder, now):
        return Renewal(held=False)
    table = schema.holders
    sql.execute(update(table).where(table.c.id == holder).values(expires_at_ms=_until(lease, now)))
    if metered:
        sql.execute(
            _RECORD,
            [
                {
                    "call": each.reservation_id,
                    "by": holder,
                    "cost": min(each.cost, MAX_INTEGER),
                    "prompt": each.prompt_tokens,
                    "completion": each.completion_tokens,
                }
                for each in metered
            ],
        )
    calls, connections = schema.reservations, schema.connections
    same = and_(connections.c.app_id == calls.c.app_id, connections.c.user_id == calls.c.user_id)
    revoked = sql.execute(
        select(calls.c.id)
        .join(connections, same)
        .where(calls.c.holder == holder, calls.c.revocations != connections.c.revocations)
    )
    return Renewal(held=True, revoked=frozenset(revoked.scalars()))


def end(sql: Sql, holder: str) -> None:
    """End a process's lease; what it has not settled is anybody's from now on."""
    sql.execute(delete(schema.holders).where(schema.holders.c.id == holder))


def expire_leases(sql: Sql, now: datetime) -> None:
    """Forget the processes that did not renew, and the keys that have served their time."""
    table = schema.holders
    sql.execute(delete(table).where(table.c.expires_at_ms <= _until(0, now)))
    keys = schema.idempotency
    sql.execute(delete(keys).where(keys.c.created_at <= seconds(now) - rules.KEY_SECONDS))


def left_behind(sql: Sql) -> list[tuple[str, Outcome]]:
    """Some of the calls that nobody holds any more, and how each has ended."""
    calls, holders = schema.reservations, schema.holders
    rows = sql.execute(
        select(calls)
        .where(~exists().where(holders.c.id == calls.c.holder))
        .order_by(calls.c.id)
        .limit(SWEEP_BATCH)
    )
    return [(row.id, _expired(row)) for row in cast("list[Any]", rows.all())]


def sweep(sql: Sql, now: datetime) -> int:
    """Settle some of what processes that died have left behind; how many."""
    expire_leases(sql, now)
    left = left_behind(sql)
    for reservation_id, outcome in left:
        settle(sql, reservation_id, outcome, now)
    return len(left)


def lease_lost() -> WattfareError:
    """The refusal where this process may not reserve: it could not renew its lease."""
    return not_available("The service has lost touch with its database.")


def _expired(row: Any) -> Outcome:
    cost, ended = rules.expire(Held(row.reserved_nanos, row.stream, row.metered_nanos))
    return Outcome(
        ended=ended,
        generated=cost > 0 or not row.stream,
        cost=cost,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )


def _holds(sql: Sql, holder: str, now: datetime) -> bool:
    table = schema.holders
    found = select(table.c.id).where(table.c.id == holder, table.c.expires_at_ms > _until(0, now))
    return sql.execute(found).first() is not None


def _prior(sql: Sql, order: Order, now: datetime) -> Prior | None:
    keys, ledger = schema.idempotency, schema.ledger
    row = one(
        sql.execute(
            select(keys.c.body_hash, ledger.c.ended)
            .outerjoin(ledger, ledger.c.reservation_id == keys.c.reservation_id)
            .where(_key(order), keys.c.created_at > seconds(now) - rules.KEY_SECONDS)
        ).first()
    )
    return None if row is None else Prior(row.body_hash, row.ended)


def _key(order: Order) -> Any:
    table = schema.idempotency
    assert order.key is not None
    return and_(
        table.c.app_id == order.app_id,
        table.c.payer == order.payer,
        table.c.key_hash == order.key.name,
    )


def _until(lease: float, now: datetime) -> int:
    return int(now.timestamp() * 1000) + round(lease * 1000)


_CALLS = schema.reservations
_RECORD = (
    update(_CALLS)
    .where(_CALLS.c.id == bindparam("call"), _CALLS.c.holder == bindparam("by"))
    .values(
        metered_nanos=bindparam("cost"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
    )
)
