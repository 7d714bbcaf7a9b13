"""The clocks of the ledger.

Bills use the wall clock. Leases use a steady clock, so setting the wall clock does not end or
extend a lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)
#: Seconds on a steady clock. If the system has such a clock, it also counts the time in which the
#: machine sleeps.
steady_seconds: Callable[[], float] = (
    time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)
)


class LeaseTime(NamedTuple):
    """A point in time on the clock of the leases.

    Attributes:
        boot: the id of the machine's boot, at which the clock started. A lease from another boot
            has ended. Empty for the wall clock.
        ms: milliseconds.
    """

    boot: str
    ms: int


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def lease_now() -> LeaseTime:
    """The time on a clock that all processes of this machine share. It is the wall clock if the
    system does not identify its boots."""
    boot = _boot_id()
    if not boot or _BOOTTIME is None:
        return LeaseTime("", milliseconds(utc_now()))
    return LeaseTime(boot, int(time.clock_gettime(_BOOTTIME) * 1000))


def seconds(moment: datetime) -> int:
    """Unix seconds."""
    return int(moment.timestamp())


def milliseconds(moment: datetime) -> int:
    """Unix milliseconds."""
    return int(moment.timestamp() * 1000)


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()[:64]
    except OSError:
        return ""
