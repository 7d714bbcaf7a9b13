"""pydantic-ai."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import openai
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from libraries.drivers import base
from libraries.drivers.base import QUESTION, Answer, Endpoint, Tokens, cost_of, ignore, weather


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """An Agent on an OpenAIChatModel, which drops the cost."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def ask(self, text: str = QUESTION) -> Answer:
        return self._run(text)

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        return asyncio.run(self._stream(heard))

    def tools(self) -> Answer:
        return self._run(QUESTION, tools=[weather])

    def stream_tools(self) -> Answer:
        return asyncio.run(self._stream(ignore, tools=[weather]))

    def structured(self) -> tuple[str, str]:
        found = {
            (city.name, city.country)
            for kind in (ToolOutput, NativeOutput)
            for city in [asyncio.run(self._result(QUESTION, output_type=kind(City))).output]
        }
        (city,) = found
        return city

    def image(self, data: bytes) -> Answer:
        return self._run(["What is this?", BinaryContent(data, media_type="image/png")])

    def pdf(self, data: bytes) -> Answer:
        return self._run(["What is this?", BinaryContent(data, media_type="application/pdf")])

    def second_turn(self) -> Answer:
        return asyncio.run(self._second_turn())

    async def _second_turn(self) -> Answer:
        async with self._client() as client:
            agent = self._agent(client, tools=[weather])
            first = await agent.run(QUESTION)
            async with agent.run_stream(
                "And tomorrow?", message_history=first.all_messages()
            ) as second:
                await second.get_output()
            history = second.all_messages()
            return _answer(await agent.run("And then?", message_history=history))

    def _run(self, prompt: Any, **options: Any) -> Answer:
        return _answer(asyncio.run(self._result(prompt, **options)))

    async def _result(self, prompt: Any, **options: Any) -> Any:
        async with self._client() as client:
            return await self._agent(client, **options).run(prompt)

    async def _stream(self, heard: Callable[[str], object], **options: Any) -> Answer:
        async with self._client() as client:
            pieces: list[str] = []
            async with self._agent(client, **options).run_stream(QUESTION) as result:
                async for piece in result.stream_text(delta=True, debounce_by=None):
                    pieces.append(piece)
                    heard(piece)
            cost = _cost(result.all_messages()[-1])
            return Answer("".join(pieces), _tokens(result.usage), cost, len(pieces))

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.endpoint.url,
            api_key=self.endpoint.key,
            default_headers=dict(self.endpoint.headers),
            max_retries=0,
        )

    def _agent(self, client: openai.AsyncOpenAI, **options: Any) -> Any:
        return Agent(self._model(client), **options)

    def _model(self, client: openai.AsyncOpenAI) -> Any:
        return OpenAIChatModel(self.endpoint.model, provider=OpenAIProvider(openai_client=client))


def _answer(result: Any) -> Answer:
    return Answer(result.output, _tokens(result.usage), _cost(result.all_messages()[-1]))


def _cost(response: Any) -> Decimal | None:
    return cost_of(response.provider_details or {})


def _tokens(usage: Any) -> Tokens:
    usage = usage() if callable(usage) else usage
    return Tokens(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.cache_read_tokens,
        usage.details.get("reasoning_tokens"),
    )
