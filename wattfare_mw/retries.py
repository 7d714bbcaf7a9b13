"""Private: decides whether a call is made again, and after how long."""

from __future__ import annotations

import random

from .errors import WattfareError, WattfareNetworkError, WattfareRateLimitError

#: The longest wait, in seconds. The caller decides about longer ones.
MAX_RETRY_DELAY = 30.0
#: Inside a request to an app, a call is made again at most once, after this time, in seconds.
REQUEST_RETRY_DELAY = 0.1
#: Inside a request to an app, a call that took longer than this to fail is not made again
#: (seconds).
REQUEST_RETRY_WITHIN = 1.0


def retry_delay(
    failure: WattfareError,
    attempt: int,
    *,
    repeatable: bool,
    in_request: bool = False,
    took: float = 0.0,
) -> float | None:
    """How long to wait before the call is made again, in seconds; None if it is not made again.

    An inference call is repeated only if the connection was never made, so that nothing can have
    been billed. Any other call is repeated if the failure may be temporary.

    Args:
        failure: the error of the last attempt.
        attempt: the number of attempts before it.
        repeatable: True if a second call bills nothing.
        in_request: True inside a request to an app. A wait would block a worker of the app, and so
            the app's other users. So the failure is passed on if it is a 429, has a
            ``Retry-After``, or came late. Any other call is tried once more, soon.
        took: how long the last attempt took, in seconds.
    """
    if in_request and (
        attempt > 0
        or took > REQUEST_RETRY_WITHIN
        or failure.retry_after is not None
        or isinstance(failure, WattfareRateLimitError)
    ):
        return None
    if isinstance(failure, WattfareNetworkError):
        if failure.sent and not repeatable:
            return None
    elif not repeatable or not (
        isinstance(failure, WattfareRateLimitError)
        or failure.status == 408
        or failure.status >= 500
    ):
        return None
    if in_request:
        return REQUEST_RETRY_DELAY
    # Without jitter, the retries of many clients at once would keep a struggling service down.
    delay = 0.5 * 2 ** min(attempt, 4) * random.uniform(0.5, 1.0)  # noqa: S311
    if failure.retry_after is not None:
        delay = max(delay, failure.retry_after)
    return delay if delay <= MAX_RETRY_DELAY else None
