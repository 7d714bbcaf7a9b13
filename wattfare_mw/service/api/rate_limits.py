"""Rate limits for apps, users and addresses.

The rule is in :func:`_admit`. A single user or address must not use up the limit of the whole app:

- Each user and each address has its own limit. Requests above it do not count against the app's
  limit.
- The first requests of a user or an address in a minute (``fair``) may use the app's whole limit.
  All further requests together may use half of it, so the other half is left for users with few
  requests.

Inference calls and failed authentications are counted in this process, because a query to Redis
would take longer than the rest of a call. Other requests are counted in Redis, if it is configured.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec
from limits.aio.storage import RedisStorage
from starlette.types import Scope

from ...errors import WattfareRateLimitError, forget_frames, invalid_request
from ...flow import Flow, run_async
from ...transport import Secret, hidden
from ..errors import not_available
from ..keys import digest

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

#: The length of a window, in seconds.
MINUTE = 60
DAY = 24 * 3600
#: The maximum number of counters of one kind in memory. Above it, the oldest is removed.
MAX_COUNTERS = 100_000
#: In a day, one address may use the grants' ceiling divided by this number.
GRANT_SHARE = 4


class Rate(msgspec.Struct, frozen=True, dict=True):
    """The limit of one kind of request per minute.

    Attributes:
        what: the kind of request, in the plural.
        per: what each counter is for: a user or an address.
        most: the limit of one user or address; None for no limit.
        fair: how many requests of one user or address may use the app's whole limit. Further ones
            may use half of it.
        app: the limit of one app; None for no limit.
    """

    what: str
    per: str = "user"
    most: int | None = None
    fair: int = 0
    app: int | None = None

    @cached_property
    def by_client(self) -> str:
        """The kind of the counters of one user or address."""
        return f"{self.what} by {self.per}"

    @cached_property
    def by_busy(self) -> str:
        """The kind of the counter of requests above ``fair``."""
        return f"{self.what} by busy {self.per}"

    @cached_property
    def by_app(self) -> str:
        """The kind of the counters of an app."""
        return f"{self.what} by app"


#: The protocol sets the limit of an app to 120.
SESSIONS = Rate("sessions", most=30, fair=1, app=120)
STATUSES = Rate("status requests", most=600, fair=60, app=12_000)
MODEL_LISTS = Rate("lists of models", app=600)
CONNECTIONS = Rate("requests of connections", most=60, fair=10, app=6_000)
#: Requests from browsers. Many browsers may share an address.
BROWSERS = Rate("requests of browsers", "address", most=600)
#: Each of these requests sends a key from a browser to the upstream.
KEY_CHECKS = Rate("checks of keys", "address", most=30)
GRANTS = Rate("grants", "address", most=30, fair=3, app=120)
FAILURES = Rate("requests with an invalid credential", "address", most=300)
APPROVALS = Rate("approvals of grants", "address", most=120, fair=10, app=1_200)
#: These requests need a session token, so they have their own limit. An attacker with the
#: publishable key and many addresses cannot stop the app's users from connecting.
USER_APPROVALS = Rate("approvals of connections", most=30, fair=5, app=1_200)
REDEMPTIONS = Rate("attempts to redeem an approval", "address", most=10)
#: Sign-ins on the service's own pages.
SIGN_INS = Rate("sign-ins", "address", most=120)
RECOVERY_CODES = Rate("recovery codes", "address", most=10)


class _Count(msgspec.Struct, frozen=True, gc=False):
    """A command: add to this counter. The result is the new count."""

    kind: str
    key: tuple[str, ...]
    seconds: int = MINUTE
    amount: int = 1


class _Ends(msgspec.Struct, frozen=True):
    """A command: read how long until this counter resets. The result is seconds."""

    counter: _Count


def _admit(rate: Rate, app_id: str, client: str = "") -> Flow[None]:
    """Count one request, and refuse it if it exceeds a limit."""
    if rate.most is not None:
        counter = _Count(rate.by_client, (app_id, client))
        mine = yield counter
        if mine > rate.most:
            what = f"{rate.what} a minute for this {rate.per}"
            raise _too_many(rate.most, what, (yield _Ends(counter)))
        if rate.app is not None and mine > rate.fair:
            counter = _Count(rate.by_busy, (app_id,))
            if (yield counter) > rate.app // 2:
                what = f"{rate.what} a minute for all busy users of this app together"
                raise _too_many(rate.app // 2, what, (yield _Ends(counter)))
    if rate.app is not None:
        counter = _Count(rate.by_app, (app_id,))
        if (yield counter) > rate.app:
            what = f"{rate.what} a minute for this app"
            raise _too_many(rate.app, what, (yield _Ends(counter)))


def _admit_hold(app_id: str, address: str, cap: int, ceiling: int, largest: int) -> Flow[None]:
    """Count the amount of a grant against the part of the app's ceiling that one address may use in
    a day, in nano-dollars. One grant is always allowed."""
    counter = _Count("nanos of grants by address", (app_id, address), DAY, cap)
    if (yield counter) > max(ceiling // GRANT_SHARE, largest):
        raise WattfareRateLimitError(
            "The grants of this address have reached their limit for now.",
            retry_after=_wait((yield _Ends(counter))),
        )


def _too_many(most: int, what: str, ends_in: float) -> WattfareRateLimitError:
    return WattfareRateLimitError(f"At most {most:,} {what}.", retry_after=_wait(ends_in))


def _wait(ends_in: float) -> int:
    return max(1, math.ceil(ends_in))


class RateLimits:
    """Counts requests in windows, which start with the first request. The amounts of grants are
    counted in windows of a day, and everything else in windows of a minute.

    Each method raises a WattfareRateLimitError with ``retry_after`` if a limit is exceeded, and a
    WattfareError with status 503 if the storage is unavailable.

    Args:
        storage: ``redis://…``, to count across processes; None counts in the memory of this
            process.
        calls_per_user: the maximum number of inference calls per minute of one user or grant.
        calls_per_app: the maximum number of inference calls per minute of one app.
        clock: returns the time in Unix seconds, for the counters in memory.

    Raises:
        WattfareError: ``invalid_request``; the URL is invalid, or the extra is missing.
    """

    def __init__(
        self,
        storage: str | None = None,
        *,
        calls_per_user: int = 600,
        calls_per_app: int = 12_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        storage = hidden(storage)
        self._memory = Counters(clock)
        self._pool: ConnectionPool | None = None
        self._redis: RedisStorage | None = None
        if storage is not None:
            self._pool = _redis_pool(storage)
            # redis-py is the most common client, but not the default of the library.
            self._redis = RedisStorage(
                "async+redis://",
                implementation="redispy",
                connection_pool=self._pool,  # type: ignore[arg-type]
            )
        fair = max(1, calls_per_user // 10)
        self._calls = Rate("calls", most=calls_per_user, fair=fair, app=calls_per_app)
        # A browser can invent any number of grants with few requests each, so `fair` is 0.
        self._grant_calls = Rate("calls", most=calls_per_user, fair=0, app=calls_per_app)

    def call(self, app_id: str, user_id: str | None, grant_hash: str | None) -> None:
        """Count an inference call of this user, or of this grant."""
        if user_id is None:
            flow = _admit(self._grant_calls, app_id, f"grant:{grant_hash}")
        else:
            flow = _admit(self._calls, app_id, f"user:{user_id}")
        self._memory.run(flow)

    def failed_authentication(self, address: str) -> None:
        """Count a request with an invalid credential. Requests with a valid credential are not
        refused because of it, since many clients may share an address."""
        self._memory.run(_admit(FAILURES, "", address))

    async def session(self, app_id: str, user_id: str) -> None:
        """Count a session for this user."""
        await self._count(_admit(SESSIONS, app_id, user_id))

    async def status(self, app_id: str, user_id: str) -> None:
        """Count an app's request for this user's status."""
        await self._count(_admit(STATUSES, app_id, user_id))

    async def models(self, app_id: str) -> None:
        """Count a list of models for this app."""
        await self._count(_admit(MODEL_LISTS, app_id))

    async def browser(self, address: str) -> None:
        """Count a request of a browser, before its credential is checked."""
        await self._count(_admit(BROWSERS, "", address))

    async def key_check(self, address: str) -> None:
        """Count a key from a browser, which is sent to the upstream."""
        await self._count(_admit(KEY_CHECKS, "", address))

    async def connection(self, app_id: str, user_id: str) -> None:
        """Count a request of this user's browser."""
        await self._count(_admit(CONNECTIONS, app_id, user_id))

    async def grant(self, app_id: str, address: str) -> None:
        """Count a grant for a browser at this address."""
        await self._count(_admit(GRANTS, app_id, address))

    async def approval(self, app_id: str, address: str) -> None:
        """Count a new approval of a grant, for a browser at this address."""
        await self._count(_admit(APPROVALS, app_id, address))

    async def user_approval(self, app_id: str, user_id: str) -> None:
        """Count a new approval of a connection, for this user."""
        await self._count(_admit(USER_APPROVALS, app_id, user_id))

    async def redemption(self, approval_id: str, address: str) -> None:
        """Count an attempt to redeem this approval, by a browser at this address."""
        # Use a hash, because the id in the path may be long.
        await self._count(_admit(REDEMPTIONS, digest(approval_id), address))

    async def sign_in(self, address: str) -> None:
        """Count the creation of a passkey or a sign-in, for a browser at this address."""
        await self._count(_admit(SIGN_INS, "", address))

    async def recovery_code(self, address: str) -> None:
        """Count a recovery code from a browser at this address."""
        await self._count(_admit(RECOVERY_CODES, "", address))

    async def grant_hold(
        self, app_id: str, address: str, cap: int, ceiling: int, largest: int
    ) -> None:
        """Count a grant that the operator pays for, for a browser at this address.

        An address of this machine is not counted. It belongs to a developer, or to a proxy that
        does not pass on the client's address.

        Args:
            app_id: the id of the app.
            address: the address of the browser.
            cap: the cap of the grant, in nano-dollars.
            ceiling: the maximum of all grants of the app together, in nano-dollars.
            largest: the largest cap of one grant, in nano-dollars.
        """
        if not _is_of_this_machine(address):
            await self._count(_admit_hold(app_id, address, cap, ceiling, largest))

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _count(self, flow: Flow[None]) -> None:
        if self._redis is None:
            self._memory.run(flow)
        else:
            await run_async(flow, self._ask_redis)

    async def _ask_redis(self, command: _Count | _Ends) -> float:
        storage: Any = self._redis
        count = command.counter if isinstance(command, _Ends) else command
        key = "/".join(quote(part, safe="") for part in (count.kind, *count.key))
        try:
            if isinstance(command, _Ends):
                return await storage.get_expiry(key) - time.time()
            return await storage.incr(key, count.seconds, count.amount)
        except storage.base_exceptions as error:
            forget_frames(error)  # the frames have the password
            raise not_available("The service's storage of rate limits is not available.") from error


class Counters:
    """Counters in memory, which reset at the end of their window.

    The library ``limits`` also has counters in memory, but it scans all of them on each change, and
    their number has no limit. Here, a change takes constant time, and there are at most
    :data:`MAX_COUNTERS` of each kind.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Each kind is sorted by reset time, because all its windows have the same length.
        self._kinds: dict[str, OrderedDict[tuple[str, ...], list[float]]] = {}

    def run(self, flow: Flow[None]) -> None:
        """Run a flow. A counter in memory never fails, so :func:`.flow.run` is not needed."""
        try:
            command = next(flow)
            while True:
                command = flow.send(self.perform(command))
        except StopIteration:
            pass

    def perform(self, command: _Count | _Ends) -> float:
        """Add to a counter, or return the seconds until it resets."""
        if isinstance(command, _Ends):
            return self._kinds[command.counter.kind][command.counter.key][1] - self._clock()
        counters = self._kinds.get(command.kind)
        if counters is None:
            counters = self._kinds[command.kind] = OrderedDict()
        now = self._clock()
        found = counters.get(command.key)
        # If the clock was set back, the old window would last too long, so a new one starts. The
        # added second allows for rounding.
        if found is not None and 0 < found[1] - now <= command.seconds + 1:
            found[0] += command.amount
            return found[0]
        counters.pop(command.key, None)
        self._make_room(counters, now)
        counters[command.key] = [command.amount, now + command.seconds]
        return command.amount

    @staticmethod
    def _make_room(counters: OrderedDict[tuple[str, ...], list[float]], now: float) -> None:
        # Remove up to two expired counters for each new one, so that all are removed in time.
        for _ in range(2):
            if not counters:
                return
            _, until = next(iter(counters.values()))
            if now < until and len(counters) < MAX_COUNTERS:
                return
            counters.popitem(last=False)


@lru_cache(maxsize=1024)
def _group(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:  # such as a Unix socket
        return host
    if isinstance(address, IPv6Address) and not address.is_loopback:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        # One internet connection usually has a whole IPv6 network of this size.
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return host


def _is_of_this_machine(address: str) -> bool:
    try:
        return ip_network(address).is_loopback
    except ValueError:
        return True


def address_of(scope: Scope) -> str:
    """The client's address, as the server knows it: an IPv4 address, or a network of IPv6."""
    client = scope.get("client")
    return _group(client[0]) if client else ""


def _redis_pool(url: str) -> ConnectionPool:
    url = hidden(url)
    if not url.startswith(("redis://", "rediss://")):
        raise invalid_request(
            "The storage of rate limits must be redis://host:port. Leave it out to count in memory."
        )
    try:
        from redis.asyncio import ConnectionPool

        # Pass the credentials to each connection separately, so that no frame of a library has the
        # password.
        address, credentials = _without_credentials(url)
        return ConnectionPool.from_url(address, **credentials)  # pyright: ignore[reportUnknownMemberType]
    except ImportError:
        fault = "Redis needs an extra: pip install 'wattfare-mw[service,redis]'."
    except (ValueError, TypeError):  # the message may contain the password
        fault = (
            "The Redis URL is invalid. It must have the form redis://user:password@host:port/0."
            " Percent-encode all characters of the password except letters and digits (@ is %40, /"
            " is %2F)."
        )
    raise invalid_request(fault)


def _without_credentials(url: str) -> tuple[str, dict[str, Secret]]:
    """The URL without the user and the password; the user; the password."""
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
