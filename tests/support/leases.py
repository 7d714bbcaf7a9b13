"""Ends the lease of a dead or stopped process without waiting."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, select, update

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.databases import open_store


def end_leases(database: str) -> None:
    """Ends the lease of each process that has calls in flight, as if its time were over. The next
    sweep of any process treats it as expired.

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
