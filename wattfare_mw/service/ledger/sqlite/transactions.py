"""The transactions of each call, in SQLite.

Each function reads rows, applies the rules and writes, inside the transaction of its cursor. It
uses the driver directly. Totals change in the same transaction as the rows that they sum up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from ...errors import lease_lost
from ...records import (
    Account,
    App,
    Connection,
    GrantBudget,
    Granted,
    InferenceCall,
    LeaseRenewal,
    MeterReading,
    OperatorTotals,
    Outcome,
    PriorCall,
    Terms,
    Totals,
)
from .. import rules
from ..clock import LeaseTime, seconds
from ..leases import MAX_INTEGER
from ..schema import ALL_APPS, TAKEN_BACK
from . import statements


def reserve(
    cursor: sqlite3.Cursor,
    call: InferenceCall,
    terms: Terms,
    holder: str,
    now: datetime,
    lease_now: LeaseTime,
) -> Granted:
    """Reserve what the call may cost. Returns the amount, and the funding that pays.

    Raises:
        WattfareError: the rules refuse the call. Nothing has changed.
    """
    at = seconds(now)
    month = rules.month_of(now)
    if call.grant_hash is None:
        account = (call.app_id, call.user_id, month, holder, *lease_now)
        if terms.ceiling is None:
            found = cursor.execute(statements.SELECT_PAYING_USER_ALONE, account).fetchone()
        else:
            found = cursor.execute(statements.SELECT_PAYING_USER, (month, *account)).fetchone()
    else:
        account = (call.grant_hash, call.app_id, holder, *lease_now)
        found = cursor.execute(statements.SELECT_PAYING_GRANT, account).fetchone()
    if found is None:
        raise lease_lost()
    if call.key is not None:
        rules.check_key(call.key, _prior(cursor, call, at))
    connection, before = (None, Totals()) if call.user_id is None else _account(found)
    grant = _grant(found) if call.user_id is None else None
    paying = connection or grant
    payer_id, funding_id = (paying.payer_id, paying.funding_id) if paying else ("", None)
    counted = rules.counts_for_operator(funding_id, terms)
    operator = _operator_totals(cursor, call.app_id, month) if counted else rules.NOTHING_COUNTED
    revocations = 0
    if call.grant_hash is None:
        totals, granted = rules.reserve(connection, before, call.bounds, terms, at, operator)
        _write_totals(cursor, call.app_id, call.user_id, payer_id, month, totals)
        revocations = connection.revocations if connection else 0
    else:
        after, granted = rules.reserve_grant(grant, call.bounds, at, terms, operator)
        _write_grant(cursor, call.grant_hash, after)
    if counted:
        _reserve_for_operator(cursor, call.app_id, month, operator, granted)
    cursor.execute(
        statements.INSERT_RESERVATION,
        (  # int, because the driver takes longer to adapt a bool
            call.id,
            call.app_id,
            call.user_id,
            call.grant_hash,
            month,
            call.model,
            granted,
            at,
            call.request_id,
            holder,
            int(call.stream),
            revocations,
            int(call.bounds.unbounded),
            payer_id,
            funding_id,
            int(counted),
        ),
    )
    if call.key is not None:
        cursor.execute(statements.UPSERT_IDEMPOTENCY_KEY, (*_key(call), call.key.body, call.id, at))
    return Granted(granted, funding_id)


def settle(
    cursor: sqlite3.Cursor, reservation_id: str, account: Account, outcome: Outcome, now: datetime
) -> int | None:
    """End a reservation and bill its outcome, in the month of the reservation.

    Returns the bill, in nano-dollars. Returns None, and changes nothing, if the reservation was
    already settled.
    """
    this = (reservation_id,)
    app_id, user_id, grant_hash = account.app_id, account.user_id, account.grant_hash
    found = cursor.execute(
        statements.SELECT_RESERVATION, (reservation_id, app_id, user_id, grant_hash)
    ).fetchone()
    if found is None:
        return None
    month, reserved, payer_id, counted = found
    if grant_hash is None:
        billed = rules.billed_for(reserved, outcome.cost)
        settled = (billed, reserved, app_id, user_id, payer_id, month)
        if cursor.execute(statements.SETTLE_TOTALS, settled).rowcount != 1:
            raise sqlite3.IntegrityError("a reservation without its total")
    else:
        found = cursor.execute(statements.SELECT_GRANT, (grant_hash,)).fetchone()
        before = cast("GrantBudget", _grant(found))
        after, billed = rules.settle_grant(
            before, reserved, outcome.cost, generated=outcome.generated
        )
        _write_grant(cursor, grant_hash, after)
    if counted:
        of_operator = (billed, reserved, app_id, ALL_APPS, month)
        if cursor.execute(statements.SETTLE_OPERATOR_TOTALS, of_operator).rowcount != 2:
            raise sqlite3.IntegrityError("a reservation without the operator's totals")
    cursor.execute(
        statements.INSERT_LEDGER_ROW,
        (
            seconds(now),
            outcome.prompt_tokens,
            outcome.completion_tokens,
            billed,
            outcome.claimed,
            outcome.ended,
            reservation_id,
        ),
    )
    cursor.execute(statements.DELETE_RESERVATION, this)
    if not outcome.generated:
        # The call produced nothing, so its key can be reused.
        cursor.execute(statements.DELETE_IDEMPOTENCY_KEY, this)
    return billed


def begin_lease(
    cursor: sqlite3.Cursor, holder: str, lease: float, lease_now: LeaseTime
) -> LeaseRenewal:
    """Begin a process's lease."""
    ends = lease_now.ms + round(lease * 1000)
    cursor.execute(statements.INSERT_LEASE, (holder, ends, lease_now.boot))
    return LeaseRenewal(held=True)


def renew_lease(
    cursor: sqlite3.Cursor,
    holder: str,
    readings: Sequence[MeterReading],
    lease: float,
    lease_now: LeaseTime,
) -> LeaseRenewal:
    """Extend a process's lease, and record the cost of its streams. An expired lease is not
    extended, because another process may be settling its calls."""
    renewed = (lease_now.ms + round(lease * 1000), holder, *lease_now)
    if not cursor.execute(statements.UPDATE_LEASE, renewed).rowcount:
        return LeaseRenewal(held=False)
    if readings:
        cursor.executemany(
            statements.UPDATE_METERED,
            [
                (
                    min(each.cost, MAX_INTEGER),
                    each.prompt_tokens,
                    each.completion_tokens,
                    each.generation_id,
                    each.reservation_id,
                    each.account.app_id,
                    each.account.user_id,
                    each.account.grant_hash,
                    holder,
                )
                for each in readings
            ],
        )
    revoked = cursor.execute(statements.SELECT_REVOKED_CALLS, (holder, TAKEN_BACK))
    return LeaseRenewal(held=True, revoked=frozenset(row[0] for row in revoked))


def account(
    cursor: sqlite3.Cursor, app_id: str, user_id: str, now: datetime
) -> tuple[Connection | None, Totals]:
    """A user's connection, and its payer's totals for this month."""
    month = rules.month_of(now)
    asked = (month, month, app_id, user_id)
    found = cursor.execute(statements.SELECT_ACCOUNT, asked).fetchone()
    return (None, Totals()) if found is None else _account(found)


def revoke(
    cursor: sqlite3.Cursor, app_id: str, user_id: str, payer_id: str | None, now: datetime
) -> bool:
    """Revoke a connection, as :func:`.accounts.revoke` does."""
    at = seconds(now)
    this = (False, at, app_id, user_id, payer_id, payer_id)
    if not cursor.execute(statements.REVOKE, this).rowcount:
        return False
    cursor.execute(statements.END_PAYER_CONNECTIONS, (at, "revoked", app_id, user_id))
    return True


def app_by_id(cursor: sqlite3.Cursor, app_id: str) -> App | None:
    """The app with this id."""
    found = cursor.execute(statements.SELECT_APP, (app_id,)).fetchone()
    return None if found is None else App(*found)


def _prior(cursor: sqlite3.Cursor, call: InferenceCall, at: int) -> PriorCall | None:
    since = at - rules.KEY_SECONDS
    found = cursor.execute(statements.SELECT_PRIOR_CALL, (*_key(call), since)).fetchone()
    return None if found is None else PriorCall(*found)


def _key(call: InferenceCall) -> tuple[str, str, str]:
    assert call.key is not None
    return call.app_id, call.account_name, call.key.name


def _account(row: Sequence[Any]) -> tuple[Connection | None, Totals]:
    cap, connected, revocations, payer_id, funding_id, state, billed, reserved, others = row
    if connected is None:
        return None, Totals()
    valid = rules.is_funding_valid(funding_id, state)
    paid_by = (payer_id, funding_id, valid, others or 0)
    connection = Connection(cap, bool(connected), revocations, *paid_by)
    return connection, _totals(billed, reserved)


def _totals(billed: int | None, reserved: int | None) -> Totals:
    return Totals() if billed is None or reserved is None else Totals(billed, reserved)


def _grant(row: Sequence[Any]) -> GrantBudget | None:
    requests, cap, expires_at, payer_id, funding_id, state, billed, reserved = row
    if requests is None:
        return None
    totals = _totals(billed, reserved)
    valid = rules.is_funding_valid(funding_id, state)
    return GrantBudget(requests, cap, expires_at, totals, payer_id, funding_id, valid)


def _operator_totals(cursor: sqlite3.Cursor, app_id: str, month: str) -> OperatorTotals:
    asked = (app_id, ALL_APPS, month)
    found = {
        scope: Totals(billed, reserved)
        for scope, billed, reserved in cursor.execute(statements.SELECT_OPERATOR_TOTALS, asked)
    }
    return OperatorTotals(found.get(app_id, Totals()), found.get(ALL_APPS, Totals()))


def _reserve_for_operator(
    cursor: sqlite3.Cursor, app_id: str, month: str, before: OperatorTotals, granted: int
) -> None:
    rows = [
        (scope, month, totals.billed, totals.reserved + granted)
        for scope, totals in ((app_id, before.app), (ALL_APPS, before.all_apps))
    ]
    cursor.executemany(statements.UPSERT_OPERATOR_TOTALS, rows)


def _write_totals(
    cursor: sqlite3.Cursor,
    app_id: str,
    user_id: str | None,
    payer_id: str,
    month: str,
    totals: Totals,
) -> None:
    cursor.execute(
        statements.UPSERT_TOTALS,
        (app_id, user_id, payer_id, month, totals.billed, totals.reserved),
    )


def _write_grant(cursor: sqlite3.Cursor, grant_hash: str, grant: GrantBudget) -> None:
    totals = grant.totals
    cursor.execute(
        statements.UPDATE_GRANT, (grant.requests, totals.billed, totals.reserved, grant_hash)
    )
