"""The service as an ASGI application. This module creates, connects and closes its parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..body_memory import BodyMemory
from ..transport import AsyncTransport
from ..transport.idle import IdleTimer
from . import public_url
from .api import output
from .api.browser_module import browser_routes
from .api.call_limits import CallLimits
from .api.chat_completions import ChatCompletions
from .api.framing import Frame, on_http_exception
from .api.health import Health
from .api.rate_limits import RateLimits
from .api.routes import COMPLETIONS, is_cors_path, routes
from .api.state import OnCall, ServiceState
from .errors import shutting_down
from .inference.lease_keeper import LeaseKeeper
from .inference.runner import CallRunner
from .inference.true_costs import TrueCosts
from .ledger.databases import open_store
from .ledger.store import Store
from .metrics import Metrics
from .models.echo import Echo
from .models.provider import Provider
from .models.upstream import Upstream
from .pages.endpoints import asks_for_a_page, http_error_page
from .pages.routes import is_page, page_routes
from .payers.encryption import Keyring, find_keyring
from .payers.funding import PayerFunding
from .payers.unused import UnusedPayers
from .settings import DEFAULT_PORT, Settings
from .tokens import Signer


def create_app(
    settings: Settings | None = None,
    *,
    transport: AsyncTransport | None = None,
    model: Provider | None = None,
    make_store: Callable[[str], Awaitable[Store]] = open_store,
    clock: Callable[[], float] = time.time,
    on_call: OnCall | None = None,
) -> Starlette:
    """Create a Wattfare-compatible service. Its lifespan opens and closes the database.

    Args:
        transport: the HTTP transport to the upstream. By default, the service creates one.
        model: the provider to use without an upstream. By default, the built-in model.
        make_store: a function that opens the store of a database URL.
        clock: returns the time in Unix seconds. The store has its own clock.
        on_call: called after each inference call, on the event loop.
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: _App) -> AsyncGenerator[None]:
        store = await make_store(settings.database)
        try:
            secret = settings.secret or await store.signing_key()
            metrics = Metrics()
            keyring = keyring_of(settings)
            upstream: Upstream | None = None
            if settings.upstream is None:
                provider = model or Echo(
                    default_max_tokens=settings.default_max_tokens, hold=settings.held
                )
            else:
                provider = upstream = Upstream(
                    settings.upstream,
                    settings.upstream_key,
                    metrics,
                    transport=transport,
                    default_max_tokens=settings.default_max_tokens,
                    allow_unpriced=settings.allow_unpriced,
                    prices=settings.prices,
                    media=settings.media,
                    provider=settings.provider,
                    max_answer_bytes=settings.max_answer_bytes,
                    on_hang_up=settings.on_hang_up,
                    hold=settings.held,
                )
            pages_url = settings.public_url or public_url.of_port(DEFAULT_PORT)
            # A local server needs no key.
            free = upstream is not None and not upstream.provider.sells
            funding = PayerFunding(
                store,
                keyring,
                upstream,
                settings.payer_funding,
                pages_url,
                operator_pays="operator" in settings.offered
                or (free and not settings.needs_funding),
            )
            await funding.reencrypt()
            rate_limits = RateLimits(
                settings.rate_limit_storage,
                calls_per_user=settings.calls_per_minute_per_user,
                calls_per_app=settings.calls_per_minute_per_app,
                clock=clock,
            )
            runner = CallRunner(
                store,
                settings.terms,
                TrueCosts(provider, keys=funding) if provider.keeps_records else None,
                keys=funding,
                needs_funding=settings.needs_funding,
                detached_seconds=settings.detached_seconds,
                overrun=metrics.overrun,
                public_url=pages_url,
            )
            metrics.watch_waiting(lambda: runner.waiting)
            keeper, unused = LeaseKeeper(runner), UnusedPayers(store)
            app.service = app.state.service = ServiceState(
                store=store,
                signer=Signer(secret, clock),
                provider=provider,
                rate_limits=rate_limits,
                call_limits=CallLimits(settings.max_calls_per_user, settings.max_calls_per_app),
                runner=runner,
                terms=settings.terms,
                metrics=metrics,
                bodies=BodyMemory(),
                health=Health(store),
                aliases=settings.aliases,
                fields=settings.fields,
                public_url=pages_url,
                funding=funding,
                clock=clock,
                on_call=on_call,
                heartbeats=IdleTimer(asyncio.get_running_loop(), output.HEARTBEAT_SECONDS),
            )
            try:
                await keeper.start()
                unused.start()
                yield
            finally:
                await unused.close()
                # The lease is still renewed here, so another process cannot settle these calls.
                await runner.close(shutting_down())
                await keeper.close()
                await provider.close()
                await rate_limits.close()
        finally:
            await store.close()

    app = _App(
        routes=[*routes(with_metrics=settings.metrics), *browser_routes(), *page_routes()],
        lifespan=lifespan,
        middleware=[Middleware(Frame, is_cors_path=is_cors_path)],
        exception_handlers={HTTPException: _on_http_exception},
    )
    # A client would send its key to the target of a redirect.
    app.router.redirect_slashes = False
    return app


def keyring_of(settings: Settings) -> Keyring | None:
    """Find the encryption keys of the service. Creates the key file if necessary.

    Raises:
        WattfareError: ``invalid_request``; they are invalid or missing.
    """
    return find_keyring(
        settings.database,
        settings.encryption_keys,
        needed=bool(settings.payer_funding),
        demanded=settings.funding is not None and bool(settings.payer_funding),
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if is_page(request.scope["path"]) or (error.status_code == 404 and asks_for_a_page(request)):
        return http_error_page(request, error)
    return await on_http_exception(request, error)


class _App(Starlette):
    """Starlette, but inference calls bypass its router and its middleware. These would handle each
    chunk, which takes longer than the work of the ledger."""

    #: The same as `state.service`, which takes ten times as long to look up.
    service: ServiceState

    _completions = Frame(ChatCompletions(), is_cors_path=is_cors_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == COMPLETIONS and scope["method"] == "POST":
            scope["app"] = self
            await self._completions(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
