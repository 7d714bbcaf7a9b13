"""Approvals in SQL. Each function reads, applies the rules and writes, inside the transaction of
its connection. ``now`` is in Unix seconds, by the clock that all processes share.

The row is locked before the rules are applied, so the second of two concurrent changes sees the
first.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection as Sql
from sqlalchemy import Row, delete, insert, select, update

from ...errors import invalid_request
from ...types import GrantResult
from .. import keys
from ..ledger import accounts, rules, schema
from ..ledger.clock import seconds
from ..records import GRANT_SECONDS, USERS_PAY, GrantBudget, Terms
from . import approvals
from .approvals import Approval, ApprovalRequest, Decision

#: How long an approval is kept after its end, in seconds, so that a late page gets the reason.
KEPT_SECONDS = 3600


def registered_origins(sql: Sql, app_id: str) -> frozenset[str]:
    """The origins of an app's own pages."""
    table = schema.app_origins
    query = select(table.c.origin).where(table.c.app_id == app_id)
    return frozenset(sql.execute(query).scalars())


def add(sql: Sql, approval: Approval, now: int) -> None:
    """Store a new approval, and delete those that ended long ago."""
    table = schema.approvals
    sql.execute(delete(table).where(table.c.expires_at <= now - KEPT_SECONDS))
    requested = approval.requested
    sql.execute(
        insert(table).values(
            id=approval.id,
            kind=requested.kind,
            app_id=requested.app_id,
            user_id=requested.user_id,
            epoch=requested.epoch,
            origin=requested.origin,
            return_url=requested.return_url,
            account_label=requested.account_label,
            asked_nanos=requested.asked,
            asked_unlimited=requested.kind == "connection" and requested.asked is None,
            requests=requested.requests,
            secret_hash=approval.secret_hash,
            state=approval.state,
            unlimited=False,
            created_at=approval.created_at,
            expires_at=approval.expires_at,
        )
    )


def find(sql: Sql, approval_id: str, *, lock: bool = False) -> Approval | None:
    """The approval with this id.

    Args:
        lock: lock the row until the end of the transaction.
    """
    table = schema.approvals
    query = select(table).where(table.c.id == approval_id)
    row = sql.execute(query.with_for_update() if lock else query).first()
    return None if row is None else _read(row)


def must_find(sql: Sql, approval_id: str, *, lock: bool = False) -> Approval:
    """The approval with this id.

    Raises:
        WattfareError: ``invalid_request``, 404.
    """
    found = find(sql, approval_id, lock=lock)
    if found is None:
        raise invalid_request("This request does not exist. It may be too old: start again.", 404)
    return found


def allow(sql: Sql, approval_id: str, decision: Decision, now: int) -> tuple[Approval, str]:
    """Allow an approval. Returns it, and the code for the app.

    The same payer may allow it twice, with a second click, before the app redeems it. The second
    time creates a new code and keeps the lower cap.

    Raises:
        WattfareError: ``invalid_request``; it has already been answered or has expired, or the
            payer's data has been deleted.
    """
    # Lock both payers first, as :func:`.payer_actions.delete_data` does. So a deletion comes first
    # and is seen here, or it comes later and finds the approval.
    accounts.check_payer(sql, decision.payer_id)
    replaces = decision.replaces
    if replaces is not None and accounts.lock_payer(sql, replaces) != "active":
        replaces = None
    approval = must_find(sql, approval_id, lock=True)
    code = approvals.new_secret()
    changes: dict[str, Any] = {"code_hash": keys.digest(code)}
    if not approvals.may_answer_again(approval, decision.payer_id, now):
        approvals.check_open(approval, now)
        changes |= {
            "state": "approved",
            "payer_id": decision.payer_id,
            "cap_nanos": decision.cap,
            "unlimited": approval.requested.kind == "connection" and decision.cap is None,
            "funding_id": decision.funding_id,
            "replaces": replaces,
            "decided_at": now,
        }
    elif approval.requested.kind == "connection":
        cap = rules.least_of(approval.cap, decision.cap)
        changes |= {"cap_nanos": cap, "unlimited": cap is None}
    _change(sql, approval, changes)
    return approval, code


def deny(sql: Sql, approval_id: str, now: int) -> Approval:
    """Deny an approval. A second denial also leads back to the app.

    Raises:
        WattfareError: ``invalid_request``; it has already been allowed, or it has expired.
    """
    approval = must_find(sql, approval_id, lock=True)
    if approval.state == "denied" and not approvals.is_over(approval, now):
        return approval
    approvals.check_open(approval, now)
    _change(sql, approval, {"state": "denied", "decided_at": now})
    return approval


def leave(sql: Sql, approval_id: str, now: int | None) -> None:
    """Record that the person has closed the page. None records that it is open again."""
    table = schema.approvals
    pending = table.c.id == approval_id, table.c.state == "pending"
    sql.execute(update(table).where(*pending).values(left_at=now))


def redeem(sql: Sql, approval: Approval, code: str, now: int) -> None:
    """Mark a locked approval as redeemed. The caller carries it out in the same transaction.

    Raises:
        WattfareError: ``invalid_request``, 403 or 409; see :func:`.approvals.check_redeemable`.
    """
    approvals.check_redeemable(approval, code, now)
    _change(sql, approval, {"state": "redeemed"})


def current_payer(sql: Sql, app_id: str, user_id: str) -> str:
    """The payer whose budget is connected to this user now; empty if there is none."""
    table = schema.connections
    found = sql.execute(
        select(table.c.payer_id).where(
            table.c.app_id == app_id, table.c.user_id == user_id, table.c.connected
        )
    ).scalar()
    return found or ""


def connect(sql: Sql, approval: Approval, terms: Terms, now: datetime) -> None:
    """Connect the budget of an approval that has just been redeemed.

    Raises:
        WattfareError: ``invalid_request``, 409; the connection was revoked since the approval
            began, another person has connected, or the app is deleted.
    """
    requested = approval.requested
    assert requested.user_id is not None
    assert approval.payer_id is not None
    # One at a time for each app: if two payers connect at once, the second must see the first.
    accounts.lock_app(sql, requested.app_id, alone=True)
    current = current_payer(sql, requested.app_id, requested.user_id)
    approvals.check_replacement(
        current if current not in ("", approval.payer_id) else None, approval.replaces
    )
    ceiling = terms.ceiling if rules.operator_pays(approval.funding_id, terms) else None
    if not accounts.connect(
        sql,
        requested.app_id,
        requested.user_id,
        rules.least_of(approval.cap, ceiling),
        requested.epoch,
        now,
        payer_id=approval.payer_id,
        funding_id=approval.funding_id,
        label=requested.account_label,
    ):
        raise approvals.revoked_since()


def grant(sql: Sql, approval: Approval, token: str, terms: Terms, now: datetime) -> GrantResult:
    """Create the grant of an approval that has just been redeemed. Raises an error if the rules
    refuse the grant."""
    requested = approval.requested
    assert requested.requests is not None
    cap = rules.grant_cap(requested.asked, USERS_PAY if approval.funding_id else terms)
    expires_at = seconds(now) + GRANT_SECONDS
    budget = GrantBudget(
        requested.requests,
        cap,
        expires_at,
        payer_id=approval.payer_id or "",
        funding_id=approval.funding_id,
    )
    accounts.add_grant(sql, requested.app_id, keys.digest(token), budget, terms, seconds(now))
    return GrantResult(token, expires_at, requested.requests)


def _change(sql: Sql, approval: Approval, changes: dict[str, Any]) -> None:
    table = schema.approvals
    sql.execute(update(table).where(table.c.id == approval.id).values(changes))


def _read(row: Row[Any]) -> Approval:
    return Approval(
        id=row.id,
        requested=ApprovalRequest(
            kind=row.kind,
            app_id=row.app_id,
            user_id=row.user_id,
            epoch=row.epoch,
            origin=row.origin,
            return_url=row.return_url,
            account_label=row.account_label,
            asked=row.asked_nanos,
            requests=row.requests,
        ),
        secret_hash=row.secret_hash,
        state=row.state,
        created_at=row.created_at,
        expires_at=row.expires_at,
        code_hash=row.code_hash,
        payer_id=row.payer_id,
        cap=row.cap_nanos,
        funding_id=row.funding_id,
        replaces=row.replaces,
        left=row.left_at is not None,
    )
