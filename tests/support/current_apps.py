"""Apps of several frameworks, each with global models and clients of the current user.

A user ``u7`` sends seven words, so the ledger shows who sent a call and who was billed.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import wattfare_flask
import wattfare_litestar
import wattfare_starlette
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import get as litestar_get
from litestar.response import Stream as LitestarStream
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from support.service import App
from wattfare_mw import current_async_user, current_user
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows

model = current_user.model("wattfare/echo")
async_model = current_async_user.model("wattfare/echo")
#: Its threads have no request context.
pool = ThreadPoolExecutor(4)


def words(me: str | None) -> str:
    """The words that this user sends: ``u3`` sends three."""
    return " ".join(["w"] * int((me or "u1")[1:]))


def billed(app: App) -> dict[str, list[int]]:
    """For each billed user, the number of words of each call."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in read_database(
        app.service.database, lambda sql: list(rows(sql, app_id=app.keys.app_id))
    ):
        found[row["user_id"]].append(row["prompt_tokens"])
    return dict(found)


def options(app: App, **more: Any) -> dict[str, Any]:
    """Options of a middleware with a current user."""
    keys = {"secret_key": app.keys.secret_key, "base_url": app.service.url}
    return {**keys, "current_user": True, **more}


# -- Starlette


async def _who(request: Request) -> str | None:
    await asyncio.sleep(0)
    return request.headers.get("x-me")


async def _whole(request: Request) -> PlainTextResponse:
    answer = await async_model.generate(words(request.headers.get("x-me")))
    return PlainTextResponse(answer.text)


def _whole_sync(request: Request) -> PlainTextResponse:
    return PlainTextResponse(model.generate(words(request.headers.get("x-me"))).text)


async def _stream(request: Request) -> StreamingResponse:
    text = words(request.headers.get("x-me"))

    async def body() -> AsyncIterator[str]:
        yield (await async_model.generate(text)).text
        async with async_model.stream(text) as stream:
            async for part in stream.text_stream:
                yield part
        yield (await run_in_threadpool(model.generate, text)).text

    return StreamingResponse(body())


async def _threads_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(_body(words(request.headers.get("x-me"))))


def _body(text: str) -> Iterator[str]:
    yield model.generate(text).text
    with model.stream(text) as stream:
        yield from stream.text_stream
    yield model.generate(text).text


async def _together(request: Request) -> PlainTextResponse:
    text = words(request.headers.get("x-me"))
    async with asyncio.TaskGroup() as group:
        group.create_task(async_model.generate(text))
        group.create_task(asyncio.to_thread(model.generate, text))
    answers = await asyncio.gather(*(async_model.generate(text) for _ in range(2)))
    return PlainTextResponse("".join(answer.text for answer in answers))


def starlette_app(app: App) -> Starlette:
    """A Starlette app with an async ``resolve_user``."""
    site = Starlette(
        routes=[
            Route("/whole", _whole),
            Route("/sync", _whole_sync),
            Route("/stream", _stream),
            Route("/threads-stream", _threads_stream),
            Route("/together", _together),
        ]
    )
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=_who))
    return site


# -- Litestar


async def _litestar_who(connection: Any) -> str | None:
    return connection.headers.get("x-me")


@litestar_get("/whole")
async def _litestar_whole(request: LitestarRequest[Any, Any, Any]) -> str:
    return (await async_model.generate(words(request.headers.get("x-me")))).text


@litestar_get("/sync", sync_to_thread=True)
def _litestar_sync(request: LitestarRequest[Any, Any, Any]) -> str:
    return model.generate(words(request.headers.get("x-me"))).text


@litestar_get("/stream", sync_to_thread=False)
def _litestar_stream(request: LitestarRequest[Any, Any, Any]) -> LitestarStream:
    return LitestarStream(_body_async(words(request.headers.get("x-me"))))


async def _body_async(text: str) -> AsyncIterator[str]:
    for _ in range(3):
        yield (await async_model.generate(text)).text


def litestar_app(app: App) -> Litestar:
    """A Litestar app."""
    plugin = wattfare_litestar.WattfarePlugin(**options(app, resolve_user=_litestar_who))
    views: list[Any] = [_litestar_whole, _litestar_sync, _litestar_stream]
    return Litestar(views, plugins=[plugin], openapi_config=None)


# -- Flask


def flask_app(app: App) -> flask.Flask:
    """A Flask app whose ``before_request`` function sets the user, as in many apps."""
    site = flask.Flask(__name__)

    @site.before_request
    def sign_in() -> None:
        flask.g.me = flask.request.headers.get("x-me")

    @site.get("/sync")
    def whole() -> str:
        return model.generate(words(flask.g.me)).text

    @site.get("/whole")
    async def whole_async() -> str:
        return (await async_model.generate(words(flask.g.me))).text

    @site.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(_body(words(flask.g.me)))

    @site.get("/kept-stream")
    def kept_stream() -> flask.Response:
        return flask.Response(flask.stream_with_context(_body(words(flask.g.me))))

    @site.get("/together")
    def together() -> str:
        text = words(flask.g.me)
        jobs = [pool.submit(contextvars.copy_context().run, model.generate, text) for _ in range(4)]
        return "".join(job.result().text for job in jobs)

    async def who(_request: flask.Request) -> str | None:
        await asyncio.sleep(0)
        return flask.g.me

    wattfare_flask.WattfareMiddleware(site, **options(app, resolve_user=who))
    return site
