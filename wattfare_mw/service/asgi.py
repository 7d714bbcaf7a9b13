"""The service as an ASGI application, and the few things that can be done to its database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from ..errors import invalid_request
from ..transport import AsyncTransport
from .api import framing as web
from .api import routes as api
from .api.rates import Throttle
from .inference.lease_keeper import Keeper
from .inference.runner import Calls
from .keys import AppKeys, Mode, new_app
from .ledger.store import open_store
from .models.echo import Echo
from .models.upstream import Upstream
from .settings import Settings
from .tokens import Signer

MAX_NAME = 256


def create_app(
    settings: Settings | None = None, *, transport: AsyncTransport | None = None
) -> Starlette:
    """A Wattfare-compatible service; its lifespan opens and closes the database.

    Args:
        transport: how the upstream is called; by default over a client of its own.
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        store = await open_store(settings.database)
        try:
            secret = settings.secret or await store.signing_key()
            if settings.upstream is None:
                provider = Echo(default_max_tokens=settings.default_max_tokens)
            else:
                provider = Upstream(
                    settings.upstream,
                    settings.upstream_key,
                    transport=transport,
                    default_max_tokens=settings.default_max_tokens,
                    allow_unpriced=settings.allow_unpriced,
                )
            calls = Calls(store, settings.terms)
            keeper = Keeper(store, calls)
            app.state.service = api.Service(
                store=store,
                signer=Signer(secret),
                provider=provider,
                throttle=Throttle(settings.rate_limit_storage),
                calls=calls,
                terms=settings.terms,
            )
            try:
                await keeper.start()
                yield
            finally:
                # While the lease is still kept: nobody else may settle what is being settled.
                await calls.close(api.shutting_down())
                await keeper.close()
                await provider.close()
        finally:
            await store.close()

    app = _App(
        routes=api.routes(with_metrics=settings.metrics),
        lifespan=lifespan,
        middleware=[Middleware(web.Frame, cors_paths=api.CORS_PATHS)],
        exception_handlers={HTTPException: web.on_http_exception},
    )
    # A path is right or it is not: a redirect would have a client send its key again.
    app.router.redirect_slashes = False
    return app


class _App(Starlette):
    """Starlette, but for the one path that is called all the time: its router and its other
    layers, each of which has a look at every chunk, take longer than the ledger does."""

    _completions = web.Frame(api.ChatCompletions(), cors_paths=api.CORS_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] == api.COMPLETIONS
            and scope["method"] == "POST"
        ):
            scope["app"] = self
            await self._completions(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_keys(database: str, name: str, mode: Mode = "test") -> AppKeys:
    """Make an app in this database, and give the keys, of which only a hash is kept.

    Raises:
        WattfareError: ``invalid_request``; the name is none, or the database cannot be opened.
    """
    if not 0 < len(name.strip()) <= MAX_NAME or not name.isprintable():
        raise invalid_request(f"An app's name is a line of 1 to {MAX_NAME} characters.")
    app, app_keys = new_app(name, mode)

    async def keep() -> None:
        store = await open_store(database)
        try:
            await store.add_app(app)
        finally:
            await store.close()

    # In a thread of its own, so that this can be called where a loop is running, too.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, keep()).result()
    return app_keys
