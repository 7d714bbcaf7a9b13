"""Lowers a cap with the session token of a live app. The token allows no other change."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection as Sql
from sqlalchemy import select

from ...errors import WattfareAuthError, WattfareError, invalid_request
from ..ledger import accounts, rules, schema


def lower_cap(
    sql: Sql, app_id: str, user_id: str, cap: int | None, epoch: int, now: datetime
) -> None:
    """Lower the cap of a connection.

    Args:
        cap: in nano-dollars; None for no cap.
        epoch: the token's epoch.

    Raises:
        WattfareAuthError: the connection has been revoked since the token was made.
        WattfareError: ``invalid_request``, 403; there is no connection, or the new cap is higher.
    """
    table = schema.connections
    found = sql.execute(
        select(table.c.connected, table.c.cap_nanos, table.c.revocations)
        .where(table.c.app_id == app_id, table.c.user_id == user_id)
        .with_for_update()  # the person may change the cap at the same time
    ).first()
    if found is not None and found.revocations != epoch:
        raise stale_token()
    if found is None or not found.connected or rules.least_of(cap, found.cap_nanos) != cap:
        raise _not_lower()
    accounts.change_cap(sql, app_id, user_id, cap, now, epoch=epoch)


def stale_token() -> WattfareAuthError:
    """The error for a token from before a revocation."""
    return WattfareAuthError(
        "The connection was revoked after this session token was created. Get a new one."
    )


def _not_lower() -> WattfareError:
    return invalid_request(
        "A person must approve a connection to a live app, or a higher cap, on a page of the "
        "service. Create an approval with POST /approvals. A session token can only lower the cap.",
        403,
    )
