"""The changes that a payer makes on *My budget*. They never change a row of another payer.

Each function runs inside the transaction of its connection.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection as Sql
from sqlalchemy import delete, insert, select, update

from . import accounts, schema
from .clock import seconds


class Stopped(msgspec.Struct, frozen=True):
    """The users, grants and funding whose running calls must be stopped.

    Attributes:
        accounts: pairs of an app's id and a user's id.
        grants: the hashes of grants' tokens.
        funding: the ids of funding whose keys were deleted.
    """

    accounts: frozenset[tuple[str, str]] = frozenset()
    grants: frozenset[str] = frozenset()
    funding: frozenset[str] = frozenset()


def change_connection(
    sql: Sql,
    payer_id: str,
    app_id: str,
    user_id: str,
    cap: int | None,
    now: datetime,
    *,
    funding_id: str | UnsetType | None = UNSET,
    is_fresh: bool,
) -> Literal["changed", "ended", "needs_sign_in"]:
    """Change a connection that this payer pays for.

    Args:
        cap: the new cap, in nano-dollars; None for no cap.
        funding_id: the funding that pays from now on; None for the operator's key, UNSET for no
            change.
        is_fresh: True if the payer has signed in recently. Otherwise, the cap cannot be raised, and
            the funding cannot be changed.

    Returns: ``ended`` if the payer does not have this connection, or no longer has it. Nothing has
    changed in this case, and if a fresh sign-in is needed.

    Raises:
        WattfareFundingError: the payer has no such funding, or it is not valid.
    """
    if funding_id is not UNSET:
        accounts.check_funding(sql, payer_id, funding_id)
    table = schema.connections
    found = sql.execute(
        select(table.c.cap_nanos, table.c.funding_id)
        .where(
            table.c.app_id == app_id,
            table.c.user_id == user_id,
            table.c.payer_id == payer_id,
            table.c.connected,
        )
        .with_for_update()
    ).first()
    if found is None:
        return "ended"
    other_funding = funding_id is not UNSET and funding_id != found.funding_id
    if not is_fresh and (other_funding or is_higher(cap, found.cap_nanos)):
        return "needs_sign_in"
    accounts.change_cap(sql, app_id, user_id, cap, now, payer_id=payer_id)
    if funding_id is not UNSET and other_funding:
        accounts.change_funding(sql, app_id, user_id, payer_id, funding_id)
    return "changed"


def is_higher(cap: int | None, than: int | None) -> bool:
    """True if the first cap lets an app spend more than the second one. None is no cap."""
    return than is not None and (cap is None or cap > than)


def stop_grant(sql: Sql, payer_id: str, token_hash: str, now: datetime) -> bool:
    """End a one-time grant of this payer. Returns False if the payer has no such active grant."""
    table = schema.grants
    grant = sql.execute(
        select(table)
        .where(
            table.c.token_hash == token_hash,
            table.c.payer_id == payer_id,
            table.c.expires_at > seconds(now),
        )
        .with_for_update()
    ).first()
    if grant is None:
        return False
    accounts.revoke_grant(sql, grant.app_id, token_hash, payer_id=payer_id)
    if grant.funding_id is None:
        # The operator's ceiling counts the cap of a grant until the grant expires. Without this
        # row, a person could repeatedly spend a grant, stop it and get another one. The hash of the
        # row matches no token.
        sql.execute(
            insert(table).values(
                token_hash=f"stopped:{token_hash[:56]}",
                app_id=grant.app_id,
                requests_left=0,
                cap_nanos=grant.cap_nanos,
                expires_at=grant.expires_at,
                billed_nanos=0,
                reserved_nanos=0,
            )
        )
    return True


def delete_data(sql: Sql, payer_id: str, now: datetime) -> Stopped:
    """Delete the data of a payer: passkeys, recovery codes, sign-ins, keys and labels. All
    connections and grants of the payer end. The ledger and its totals keep the payer's random id,
    which no longer identifies a person.
    """
    # Lock the payer first, so that nothing is stored for the payer from now on. What was stored
    # before is found below.
    accounts.lock_payer(sql, payer_id, alone=True)
    # Lock the approvals next, so that none of them connects anything later. The order of all locks
    # is that of :func:`.accounts.lock_app`. An approval of another payer that replaces this one
    # stays, but its row must not link this payer's id to the label of the account.
    open_, table = schema.approvals, schema.funding
    own, other = open_.c.payer_id == payer_id, open_.c.replaces == payer_id
    accounts.lock_rows(sql, open_, own | other)
    sql.execute(delete(open_).where(own))
    sql.execute(update(open_).where(other).values(replaces=None))
    accounts.lock_rows(sql, table, table.c.payer_id == payer_id)
    mine = sql.execute(select(table.c.id).where(table.c.payer_id == payer_id)).scalars().all()
    users = _accounts_of(sql, payer_id)
    grants = _grants_of(sql, payer_id, now)
    for funding_id in mine:
        accounts.remove_funding(sql, payer_id, funding_id, now)
    sql.execute(update(table).where(table.c.payer_id == payer_id).values(label=""))
    for app_id, user_id in users:
        accounts.revoke(sql, app_id, user_id, now, payer_id=payer_id)
    for token_hash in grants:
        stop_grant(sql, payer_id, token_hash, now)
    for table in (
        schema.payer_connections,
        schema.passkeys,
        schema.recovery_codes,
        schema.sign_ins,
        schema.challenges,
        schema.funding_requests,
    ):
        sql.execute(delete(table).where(table.c.payer_id == payer_id))
    payers = schema.payers
    sql.execute(update(payers).where(payers.c.id == payer_id).values(deleted_at=seconds(now)))
    return Stopped(frozenset(users), frozenset(grants), frozenset(mine))


def _accounts_of(sql: Sql, payer_id: str) -> list[tuple[str, str]]:
    """Lock and return the apps and users that this payer pays for."""
    table = schema.connections
    this = (table.c.payer_id == payer_id, table.c.connected)
    accounts.lock_rows(sql, table, *this)
    wanted = select(table.c.app_id, table.c.user_id).where(*this)
    return [(row.app_id, row.user_id) for row in sql.execute(wanted)]


def _grants_of(sql: Sql, payer_id: str, now: datetime) -> list[str]:
    """Lock and return the active grants of this payer."""
    table = schema.grants
    this = (table.c.payer_id == payer_id, table.c.expires_at > seconds(now))
    accounts.lock_rows(sql, table, *this)
    return list(sql.execute(select(table.c.token_hash).where(*this)).scalars())
