"""An adapter of your own: Wattfare for aiohttp.web, and an app that uses it.

python examples/custom_adapter_aiohttp.py
"""

import secrets
from functools import partial
from typing import Unpack

from aiohttp import web
from aiohttp.typedefs import Handler

from wattfare_mw.framework import (
    AsyncUser,
    Options,
    Request,
    WattfareAsyncAdapter,
    WattfareError,
    adapt_options,
    respond_to_error,
)


class WattfareAiohttp(WattfareAsyncAdapter):
    """``WattfareAiohttp(app, resolve_user=…)`` adds Wattfare's paths and ``get_user`` to an app."""

    let_through = (web.HTTPException,)  # aiohttp answers `raise web.HTTPForbidden()`

    def __init__(self, app: web.Application, **options: Unpack[Options]) -> None:
        super().__init__(**adapt_options(options, lambda request: request.raw))
        for path in self.paths:
            app.router.add_route("*", path, partial(self._answer, path))
        app.middlewares.append(self._around_handlers)
        app.on_cleanup.append(lambda _app: self.aclose())
        app[WATTFARE] = self

    async def _answer(self, path: str, request: web.Request) -> web.StreamResponse:
        body = request.content.iter_any()
        async with await self.respond(_neutral(request, path), body) as answer:
            response = web.StreamResponse(status=answer.status, headers=answer.headers)
            await response.prepare(request)
            async for piece in answer:
                await response.write(piece)
            await response.write_eof()
        return response

    @web.middleware
    async def _around_handlers(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except WattfareError as error:
            answer = respond_to_error(error)
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        except web.HTTPNotFound:
            has_route = request.match_info.http_exception is None
            if has_route or not self.answers_unrouted(request.path):
                raise
            return await self._answer(request.path, request)


WATTFARE = web.AppKey("WATTFARE", WattfareAiohttp)


async def get_user(request: web.Request) -> AsyncUser:
    """Return the signed-in user, in a handler."""
    return await request.config_dict[WATTFARE].user_of(_neutral(request, request.path))


def _neutral(request: web.Request, path: str) -> Request:
    query, client = request.rel_url.raw_query_string, request.remote
    headers = request.headers
    return Request(request.method, path, headers, query_string=query, client=client, raw=request)


USERS: dict[str, str] = {}  # your session store: the user of each session cookie


async def signed_in_user(request: web.Request) -> str | None:
    return USERS.get(request.cookies.get("session", ""))


async def sign_in(request: web.Request) -> web.Response:
    response = web.Response(status=204)
    response.set_cookie("session", secrets.token_urlsafe(), httponly=True, samesite="Lax")
    USERS[response.cookies["session"].value] = request.match_info["name"]  # check a password first
    return response


async def summary(request: web.Request) -> web.Response:
    user = await get_user(request)
    answer = await user.model("wattfare/echo").generate((await request.json())["text"])
    return web.json_response({"summary": answer.text, "costUsd": str(answer.cost_usd)})


app = web.Application()
app.add_routes([web.post("/sign-in/{name}", sign_in), web.post("/summary", summary)])
WattfareAiohttp(app, resolve_user=signed_in_user, request_limit=20)

if __name__ == "__main__":  # the option ends a call when its client disconnects
    web.run_app(app, host="127.0.0.1", port=8000, handler_cancellation=True)
