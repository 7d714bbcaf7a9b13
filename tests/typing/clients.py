"""What type checkers must infer for the clients."""

# Each line below with a comment that ignores an error must have one.
# pyright: reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import assert_type

import aiohttp
import httpx
import httpx2
import openai

from wattfare_mw import (
    AsyncGrant,
    AsyncModel,
    AsyncUser,
    AsyncWattfare,
    Chunk,
    Completion,
    ConnectionStatus,
    CreatedSession,
    Grant,
    Model,
    Request,
    Response,
    TokenUsage,
    User,
    Wattfare,
    WattfareError,
    WattfareMiddleware,
    current_async_user,
    current_user,
    to_wattfare_error,
)

KEY = "sk_test_1"


def make_client() -> httpx.Client:
    return httpx.Client(proxy="http://proxy.example.com")


def make_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


# `http_client` is a client of a library, a function that makes one, or its class.
Wattfare(KEY, http_client=httpx.Client())
Wattfare(KEY, http_client=httpx2.Client())
Wattfare(KEY, http_client=httpx.Client)
Wattfare(KEY, http_client=httpx2.Client)
Wattfare(KEY, http_client=make_client)
Wattfare(KEY, http_client=lambda: httpx2.Client())
Wattfare(KEY, http_client=None)
AsyncWattfare(KEY, http_client=httpx.AsyncClient())
AsyncWattfare(KEY, http_client=httpx2.AsyncClient())
AsyncWattfare(KEY, http_client=make_session())
AsyncWattfare(KEY, http_client=httpx.AsyncClient)
AsyncWattfare(KEY, http_client=httpx2.AsyncClient)
AsyncWattfare(KEY, http_client=aiohttp.ClientSession)
AsyncWattfare(KEY, http_client=make_session)
AsyncWattfare(KEY, http_client=lambda: httpx.AsyncClient())


def sync_side(wf: Wattfare) -> None:
    assert_type(wf.create_session("ann", request_limit=Decimal("0.5")), CreatedSession)
    assert_type(wf.grant("grant"), Grant)
    user = wf.user("ann")
    assert_type(user, User)
    assert_type(user.id, str)
    assert_type(user.status(), ConnectionStatus)
    model = user.model("wattfare/echo")
    assert_type(model, Model)
    done = model.generate("Say hello.", max_tokens=50)
    assert_type(done, Completion)
    assert_type(done.text, str)
    assert_type(done.usage, TokenUsage | None)
    assert_type(done.cost_usd, Decimal | None)
    with model.stream(messages=[{"role": "user", "content": "hi"}]) as stream:
        for text in stream.text_stream:
            assert_type(text, str)
        for chunk in stream:
            assert_type(chunk, Chunk)
        assert_type(stream.cost_usd, Decimal | None)
    assert_type(wf.session_handler(lambda request: None), Callable[[Request], Response])


async def async_side(wf: AsyncWattfare) -> None:
    assert_type(await wf.create_session("ann", request_limit=5), CreatedSession)
    assert_type(wf.grant("grant"), AsyncGrant)
    user = wf.user("ann")
    assert_type(user, AsyncUser)
    assert_type(await user.status(), ConnectionStatus)
    model = user.model("wattfare/echo")
    assert_type(model, AsyncModel)
    assert_type(await model.generate("Say hello."), Completion)
    async with model.stream("Say hello.") as stream:
        async for text in stream.text_stream:
            assert_type(text, str)
    handler = wf.session_handler(lambda request: None)
    assert_type(handler, Callable[[Request], Awaitable[Response]])


def errors(error: Exception) -> None:
    found = to_wattfare_error(error)
    assert_type(found, WattfareError | None)
    if found is not None:
        assert_type(found.retry_after, float | None)


# Each handle has openai clients.
def openai_clients(
    user: User, async_user: AsyncUser, grant: Grant, async_grant: AsyncGrant
) -> None:
    for payer in (user, async_user, grant, async_grant, current_user, current_async_user):
        assert_type(payer.openai(max_retries=0), openai.OpenAI)
        assert_type(payer.async_openai(max_retries=0), openai.AsyncOpenAI)


# The clients work in `with` blocks.
with Wattfare(KEY) as client:
    assert_type(client, Wattfare)


async def block() -> None:
    async with AsyncWattfare(KEY) as client:
        assert_type(client, AsyncWattfare)


# Mistakes.
Wattfare(KEY, http_client=httpx.AsyncClient())  # type: ignore[arg-type]
Wattfare(KEY, http_client=3)  # type: ignore[arg-type]
AsyncWattfare(KEY, http_client=httpx.Client())  # type: ignore[arg-type]
AsyncWattfare(KEY, http_client=make_client)  # type: ignore[arg-type]
WattfareMiddleware(lambda environ, start: [], resolve_user=lambda request: None, client=3)  # type: ignore[call-overload]
