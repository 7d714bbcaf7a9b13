"""How often an app, and each user within it, may ask for what costs the service work."""

from __future__ import annotations

import math
import time
from urllib.parse import quote

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError

from ...errors import WattfareRateLimitError, invalid_request
from ..errors import not_available

#: Sessions a minute for each app: the protocol's number.
SESSIONS_PER_APP = 120
#: Sessions a minute for each user, so that no one takes all of an app's.
SESSIONS_PER_USER = 30
#: Grants a minute for each app: anyone who has seen the publishable key can ask for one.
GRANTS_PER_APP = 120


class RateLimits:
    """Counts within a moving minute.

    Each method raises a WattfareRateLimitError, with ``retry_after``, for one too many, and a
    WattfareError with status 503 where the storage is not there.

    Args:
        storage: ``redis://…``, to count across processes; None: in this process's memory.

    Raises:
        WattfareError: ``invalid_request``; it is no such URL, or the extra is missing.
    """

    def __init__(self, storage: str | None = None) -> None:
        self._storage = MemoryStorage() if storage is None else _redis(storage)
        self._window = MovingWindowRateLimiter(self._storage)
        self._app_sessions = RateLimitItemPerMinute(SESSIONS_PER_APP)
        self._user_sessions = RateLimitItemPerMinute(SESSIONS_PER_USER)
        self._app_grants = RateLimitItemPerMinute(GRANTS_PER_APP)

    async def session(self, app_id: str, user_id: str) -> None:
        """A session for this user. What the user is refused does not count against the app."""
        await self._hit(
            self._user_sessions, "sessions", app_id, quote(user_id, safe=""), of="for this user"
        )
        await self._hit(self._app_sessions, "sessions", app_id, of="for this app")

    async def grant(self, app_id: str) -> None:
        """A grant of this app."""
        await self._hit(self._app_grants, "grants", app_id, of="for this app")

    async def _hit(self, item: RateLimitItem, what: str, *key: str, of: str) -> None:
        try:
            if await self._window.hit(item, what, *key):
                return
            resets = (await self._window.get_window_stats(item, what, *key)).reset_time
        except self._storage.base_exceptions as error:
            raise not_available("The service's storage of rate limits is not available.") from error
        raise WattfareRateLimitError(
            f"At most {item.amount} {what} a minute {of}.",
            retry_after=max(1, math.ceil(resets - time.time())),
        )


def _redis(url: str) -> RedisStorage:
    if not url.startswith(("redis://", "rediss://")):
        raise invalid_request("Rate limits are counted in memory, or in redis://host:port.")
    try:
        # The client that most people have; the library's own default is another one.
        return RedisStorage(f"async+{url}", implementation="redispy")
    except (ConfigurationError, ValueError):
        raise invalid_request(
            "Redis needs an extra, pip install 'wattfare-mw[service,redis]', and a right URL."
        ) from None
