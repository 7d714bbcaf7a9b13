"""Private: decides whether and when a failed call is retried."""

from __future__ import annotations

import random

from .errors import WattfareError, WattfareNetworkError, WattfareRateLimitError

#: The longest delay before a retry, in seconds. If the service asks for a longer one, the error is
#: raised.
MAX_RETRY_DELAY = 30.0
#: Inside a request to an app, a call is retried at most once, after this time, in seconds.
REQUEST_RETRY_DELAY = 0.1
#: Inside a request to an app, a call is not retried if it took longer than this to fail. In
#: seconds.
REQUEST_RETRY_WITHIN = 1.0


def retry_delay(
    failure: WattfareError,
    attempt: int,
    *,
    repeatable: bool,
    in_request: bool = False,
    took: float = 0.0,
) -> float | None:
    """The delay before the call is retried, in seconds; None if it is not retried.

    An inference call is retried only if there was no connection, so that nothing can have been
    billed. Other calls are retried if the failure may be temporary.

    Args:
        failure: the error of the last attempt.
        attempt: the number of attempts before the last one.
        repeatable: True if a retry cannot bill anything.
        in_request: True inside a request to an app. There, a delay would block a worker of the app,
            and so its other users. The call is not retried if the failure is a 429, has a
            ``Retry-After`` or came late. Otherwise, it is retried once after
            :data:`REQUEST_RETRY_DELAY`.
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
    # Jitter spreads the retries of many clients, so that they do not overload a service that
    # recovers.
    delay = 0.5 * 2 ** min(attempt, 4) * random.uniform(0.5, 1.0)  # noqa: S311
    if failure.retry_after is not None:
        delay = max(delay, failure.retry_after)
    return delay if delay <= MAX_RETRY_DELAY else None
