"""The lease of a process that is dead or stopped, without the wait for its end."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, select, update

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.databases import open_store


def end_leases(database: str) -> None:
    """End the lease of each process that has calls in flight, as if its time had passed. The next
    sweep of any process finds it expired.

    ``service/test_deaths.py`` and ``hostile/test_pauses.py`` wait for the real end.
    """
    holders = schema.holders
    ended = (
        update(holders)
        .where(holders.c.id.in_(select(schema.reservations.c.holder)))
        .values(expires_at_ms=0)
    )

    def end(sql: Connection) -> None:
        assert sql.execute(ended).rowcount, "no process has calls in flight"

    async def run() -> None:
        store = await open_store(database)
        try:
            await store.transact(end)
        finally:
            await store.close()

    asyncio.run(run())
