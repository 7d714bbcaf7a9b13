"""A background task that each process runs. It renews the lease of the process's calls, and settles
the calls of dead processes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ...errors import WattfareError
from ...logs import describe, get_logger
from .runner import CallRunner

#: How often the lease is renewed and the cost of streams is recorded, in seconds.
RENEW_SECONDS = 0.3
#: How often to look for calls of dead processes, in seconds.
SWEEP_SECONDS = 1.0

log = get_logger("wattfare_mw.service", show_messages=False)


class LeaseKeeper:
    """Renews the lease of these calls, from :meth:`start` to :meth:`close`."""

    def __init__(self, runner: CallRunner) -> None:
        self._runner = runner
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin the lease, and settle the calls of dead processes."""
        await self._runner.renew()
        await self._sweep()
        self._tasks = [
            asyncio.create_task(self._renew_forever()),
            asyncio.create_task(self._sweep_forever()),
        ]

    async def close(self) -> None:
        """Stop, after a last attempt to settle calls that could not be settled before."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        with suppress(WattfareError):
            await self._runner.renew()

    async def _renew_forever(self) -> None:
        gone = False
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                # If the database does not answer in this time, it counts as unavailable, and the
                # calls are ended before the lease ends.
                async with asyncio.timeout(max(0, self._runner.seconds_left) or None):
                    await self._runner.renew()
            except (WattfareError, TimeoutError) as error:
                if not gone:
                    log.error("could not renew the lease: %s", describe(error))
                gone = True
                with suppress(WattfareError):
                    self._runner.check_lease()
            except Exception:
                log.exception("could not renew the lease")
            else:
                if gone:
                    log.warning("the lease is renewed again")
                gone = False

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep()
            except WattfareError:
                pass  # the database is unavailable; the renewal logs it
            except Exception:
                log.exception("the sweep failed")

    async def _sweep(self) -> None:
        swept, asked = await self._runner.sweep()
        if swept:
            log.warning("%d calls of dead processes were settled", swept)
        if asked:
            log.warning("asking the upstream for the cost of %d streams of dead processes", asked)
