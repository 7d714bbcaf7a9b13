"""A global agent or model of an AI library bills the user of each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import wattfare_starlette
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.current_apps import billed, options, words
from support.http_client import http_client
from support.servers import uvicorn_server
from support.service import App, Service

from wattfare_mw import WattfareCurrentUserError

Ask = Callable[[str], Awaitable[str]]
USERS = ["u1", "u2", "u3", "u4"]


def of_pydantic_ai() -> Ask:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    from wattfare_mw.integrations.pydantic_ai import WattfareProvider

    model = models.OpenAIChatModel("wattfare/echo", provider=WattfareProvider())
    agent: Any = pydantic_ai.Agent(model)

    async def ask(text: str) -> str:
        return (await agent.run(text)).output

    return ask


def of_langchain() -> Ask:
    pytest.importorskip("langchain_openai")
    from wattfare_mw.integrations.langchain import ChatWattfare

    chat: Any = ChatWattfare(model="wattfare/echo")

    async def ask(text: str) -> str:
        return (await chat.ainvoke(text)).content

    return ask


def of_langchain_in_a_thread() -> Ask:
    pytest.importorskip("langchain_openai")
    from wattfare_mw.integrations.langchain import ChatWattfare

    chat: Any = ChatWattfare(model="wattfare/echo")

    async def ask(text: str) -> str:
        [answer] = await asyncio.to_thread(chat.batch, [text])  # which has its own threads
        return answer.content

    return ask


def of_agents() -> Ask:
    agents = pytest.importorskip("agents")
    from wattfare_mw.integrations.agents import WattfareModelProvider

    agent: Any = agents.Agent(name="echo", model="wattfare/echo")
    config = agents.RunConfig(model_provider=WattfareModelProvider(), tracing_disabled=True)

    async def ask(text: str) -> str:
        return (await agents.Runner.run(agent, text, run_config=config)).final_output

    return ask


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    with service.app() as app:
        for user in USERS:
            app.connect(user)
        yield app


@pytest.mark.parametrize(
    "make", [of_pydantic_ai, of_langchain, of_langchain_in_a_thread, of_agents]
)
def test_global_agent_bills_the_user_of_each_request(app: App, make: Callable[[], Ask]) -> None:
    ask = make()
    ended: list[asyncio.Task[str]] = []

    async def who(request: Any) -> str | None:
        await asyncio.sleep(0)
        return request.headers.get("x-me")

    async def view(request: Request) -> PlainTextResponse:
        text = words(request.headers.get("x-me"))
        gone = asyncio.Event()

        async def later() -> str:
            await gone.wait()
            return await ask("one word more than there may be")

        ended.append(asyncio.create_task(later()))
        answer = await ask(text)
        asyncio.get_running_loop().call_later(0.05, gone.set)
        return PlainTextResponse(answer)

    async def outcomes(_request: Request) -> PlainTextResponse:
        found = await asyncio.gather(*ended, return_exceptions=True)
        chains = [[*_chain(error)] for error in found if isinstance(error, BaseException)]
        refused = [
            any(isinstance(each, WattfareCurrentUserError) for each in chain) for chain in chains
        ]
        return PlainTextResponse(repr(refused))

    site = Starlette(routes=[Route("/", view), Route("/outcomes", outcomes)])
    wattfare_starlette.add_wattfare(site, **options(app, resolve_user=who))

    def visit(user: str, path: str = "/") -> str:
        url = f"http://{address[0]}:{address[1]}{path}"
        with http_client() as client:
            return client.get(url, headers={"x-me": user}).text

    with uvicorn_server(site) as address, ThreadPoolExecutor(len(USERS)) as pool:
        assert list(pool.map(visit, USERS)) == [words(user) for user in USERS]
        assert visit("u1", "/outcomes") == repr([True] * len(USERS))
    assert billed(app) == {user: [int(user[1:])] for user in USERS}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
