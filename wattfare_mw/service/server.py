"""Runs the service with uvicorn. It reports when the service listens, and stops it gracefully."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import msgspec
import uvicorn
from starlette.applications import Starlette

from ..errors import WattfareError
from .api.rate_limits import RateLimits
from .api.state import OnCall, ServiceState
from .asgi import create_app, keyring_of
from .errors import shutting_down
from .ledger.databases import open_store
from .public_url import of_port
from .settings import Settings
from .sockets import LimitedProtocol, raise_descriptors

#: How long to wait for clients to read the final error of their streams, in seconds.
LAST_WORDS_SECONDS = 5
#: How long a connection may idle, in seconds. Clients close idle connections earlier, so they never
#: send a request on a closed connection.
KEEPALIVE_SECONDS = 75
#: The threshold of the garbage collector's youngest generation.
GC_THRESHOLD = 20_000


def serve(
    settings: Settings,
    host: str,
    port: int,
    listening: Callable[[str], None],
    on_call: OnCall | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Returns when all calls are settled and everything is closed.

    Args:
        port: 0 chooses a free port.
        listening: called once with the URL, when the service accepts requests.
        on_call: called after each inference call, on the event loop.

    Raises:
        WattfareError: the database or the signing key is invalid.
        OSError: the address is in use or invalid.
    """
    raise_descriptors()
    RateLimits(settings.rate_limit_storage)
    # Check the database before the server starts, because the error is clearer here.
    asyncio.run(_try(settings.database))
    keyring_of(settings)
    with _listen(host, port) as sock:
        if settings.public_url is None:
            public_url = of_port(sock.getsockname()[1])
            settings = msgspec.structs.replace(settings, public_url=public_url)
        app = create_app(settings, on_call=on_call)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=True,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            timeout_keep_alive=KEEPALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.stop_grace + LAST_WORDS_SECONDS)),
            ws="none",
            http=LimitedProtocol,
            lifespan="on",
        )
        url = _url(host, sock.getsockname()[1])
        server = _Server(config, app, settings.stop_grace, lambda: listening(url))
        server.run([sock])
    if not server.started:
        raise WattfareError("The service did not start.")


async def _try(database: str) -> None:
    await (await open_store(database)).close()


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        grace: float,
        listening: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _collect_less()
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state: ServiceState | None = getattr(self._app.state, "service", None)
        if state is not None:
            state.runner.stop_waiting(shutting_down())  # these calls have not started
        loop = asyncio.get_running_loop()
        cut_off = loop.call_later(self._grace, self._cut_off_streams)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()

    def _cut_off_streams(self) -> None:
        state: ServiceState = self._app.state.service
        state.runner.stop(shutting_down())

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """At the end, uvicorn raises the signal again, which would kill the process. With this
        method, the process exits normally after a signal."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _collect_less() -> None:
    """Exclude the objects of the start-up from garbage collection, and collect less often, because
    calls leave no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port can be reused while its last connections linger.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
