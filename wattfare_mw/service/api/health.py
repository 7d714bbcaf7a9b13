"""The health check. It writes to the database, because reads still succeed on a full disk."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from ...errors import WattfareError
from ..errors import not_available
from ..ledger.store import Store

#: How long a result is cached, in seconds, because anyone may send any number of checks.
FRESH_SECONDS = 1.0
#: How long the database may take for the write, in seconds.
TIMEOUT_SECONDS = 5.0

log = logging.getLogger("wattfare_mw.service")


class Health:
    """Checks the database on request, at most once a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fresh_until = -math.inf
        self._problem: str | None = None
        self._check_task: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """
        Raises:
            WattfareError: 503; the database does not answer, or refuses the write.
        """
        if self._check_task is None and time.monotonic() >= self._fresh_until:
            self._check_task = asyncio.create_task(self._write())
        if self._check_task is not None:
            done, _ = await asyncio.wait({self._check_task}, timeout=TIMEOUT_SECONDS)
            if not done:
                raise not_available("The service's database does not answer.")
        if self._problem is not None:
            raise not_available(self._problem)

    async def _write(self) -> None:
        before = self._problem
        try:
            await self._store.check_writable()
            self._problem = None
        except WattfareError as error:
            self._problem = error.message
            if before is None:
                log.error("unhealthy: %s cause=%r", error.message, error.__cause__)
        except Exception:
            self._problem = "The service failed."
            log.exception("the health check failed")
        finally:
            self._fresh_until = time.monotonic() + FRESH_SECONDS
            self._check_task = None
