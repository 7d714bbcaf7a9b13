"""When a call is made again, and after how long."""

from __future__ import annotations

import random

from .errors import WattfareError, WattfareNetworkError, WattfareRateLimitError

#: Waiting longer than this is for the caller to decide (seconds).
MAX_RETRY_DELAY = 30.0


def retry_delay(failure: WattfareError, attempt: int, *, repeatable: bool) -> float | None:
    """How long to wait (seconds) before the call is made again, or None: not at all.

    An inference call is repeated only where nothing can have been billed, because the connection
    was never made; any other call where the failure may pass.
    """
    if isinstance(failure, WattfareNetworkError):
        if failure.sent and not repeatable:
            return None
    elif not repeatable or not (
        isinstance(failure, WattfareRateLimitError) or failure.status >= 500
    ):
        return None
    # Full-speed retries of many clients at once would keep a struggling service down.
    delay = 0.5 * 2 ** min(attempt, 4) * random.uniform(0.5, 1.0)  # noqa: S311
    if failure.retry_after is not None:
        delay = max(delay, failure.retry_after)
    return delay if delay <= MAX_RETRY_DELAY else None
