"""What the token of a live app may change of a connection: its cap, downwards."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection as Sql
from sqlalchemy import or_, select, update

from ...errors import WattfareAuthError, WattfareError, invalid_request
from ..ledger import schema
from ..ledger.clock import seconds


def lower_cap(
    sql: Sql, app_id: str, user_id: str, cap: int | None, epoch: int, now: datetime
) -> None:
    """Lower the cap of a connection.

    Args:
        cap: in nano-dollars; None for no cap.
        epoch: that of the token.

    Raises:
        WattfareAuthError: the connection has been revoked since the token was made.
        WattfareError: ``invalid_request``, 403; there is no connection, or its cap is lower.
    """
    table, own = schema.connections, schema.payer_connections
    there = (table.c.app_id == app_id, table.c.user_id == user_id)
    unlimited = table.c.cap_nanos.is_(None)
    # One statement: the person may change the cap at the same time.
    payer_id = sql.execute(
        update(table)
        .where(
            *there,
            table.c.connected,
            table.c.revocations == epoch,
            unlimited if cap is None else or_(unlimited, table.c.cap_nanos >= cap),
        )
        .values(cap_nanos=cap, changed_at=seconds(now))
        .returning(table.c.payer_id)
    ).scalar()
    if payer_id is None:
        current = sql.execute(select(table.c.revocations).where(*there)).scalar()
        raise stale_token() if (current or 0) != epoch else _not_lower()
    sql.execute(
        update(own)
        .where(own.c.payer_id == payer_id, own.c.app_id == app_id, own.c.user_id == user_id)
        .values(cap_nanos=cap)
    )


def stale_token() -> WattfareAuthError:
    """The token is of before a revocation."""
    return WattfareAuthError(
        "The connection was revoked after this session token was made: get a new one."
    )


def _not_lower() -> WattfareError:
    return invalid_request(
        "A live app's connection is approved, and its cap raised, by a person on the service's own "
        "page: open an approval (POST /approvals). A session token only lowers the cap.",
        403,
    )
