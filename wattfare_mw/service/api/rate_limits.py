"""How often an app, and each user within it, may ask for what costs the service work."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from ...errors import WattfareRateLimitError, forget_frames, invalid_request
from ...transport import Secret, hidden
from ..errors import not_available

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

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
        storage = hidden(storage)
        self._pool: ConnectionPool | None = None
        if storage is None:
            self._storage = MemoryStorage()
        else:
            self._pool = _redis_pool(storage)
            # The client is the one that most people have; the library's own default is another.
            self._storage = RedisStorage(
                "async+redis://",
                implementation="redispy",
                connection_pool=self._pool,  # type: ignore[arg-type]
            )
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

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _hit(self, item: RateLimitItem, what: str, *key: str, of: str) -> None:
        try:
            if await self._window.hit(item, what, *key):
                return
            resets = (await self._window.get_window_stats(item, what, *key)).reset_time
        except self._storage.base_exceptions as error:
            forget_frames(error)  # they hold the password
            raise not_available("The service's storage of rate limits is not available.") from error
        raise WattfareRateLimitError(
            f"At most {item.amount} {what} a minute {of}.",
            retry_after=max(1, math.ceil(resets - time.time())),
        )


def _redis_pool(url: str) -> ConnectionPool:
    url = hidden(url)
    if not url.startswith(("redis://", "rediss://")):
        raise invalid_request("Rate limits are counted in memory, or in redis://host:port.")
    try:
        from redis.asyncio import ConnectionPool

        # Each connection gets the password, and no frame of a library shows it.
        address, credentials = _without_credentials(url)
        return ConnectionPool.from_url(address, **credentials)  # pyright: ignore[reportUnknownMemberType]
    except ImportError:
        fault = "Redis needs an extra: pip install 'wattfare-mw[service,redis]'."
    except (ValueError, TypeError):  # its message may repeat the password
        fault = (
            "The Redis URL cannot be read: it is redis://user:password@host:port/0. In the"
            " password, percent-encode what is no letter and no digit (@ is %40, / is %2F)."
        )
    raise invalid_request(fault)


def _without_credentials(url: str) -> tuple[str, dict[str, Secret]]:
    """The URL without the user and the password, and these."""
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    query = dict(parse_qsl(parts.query))
    given = {
        "username": unquote(user) or query.pop("username", ""),
        "password": unquote(password) or query.pop("password", ""),
    }
    if parts.fragment or "@" in parts.path or parts.port == 0:
        raise ValueError
    address = parts._replace(netloc=host, query=urlencode(query)).geturl()
    return Secret(address), {name: Secret(value) for name, value in given.items() if value}
