"""openai-agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

from libraries.drivers import base
from libraries.drivers.base import QUESTION, Answer, Endpoint, Tokens, cost_of, ignore, weather
from libraries.model import data_url

set_tracing_disabled(True)


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """An Agent on an OpenAIChatCompletionsModel."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.config: Any = None

    def ask(self, text: str = QUESTION) -> Answer:
        return _answer(asyncio.run(self._run(text)))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        return asyncio.run(self._stream(heard))

    def tools(self) -> Answer:
        return _answer(asyncio.run(self._run(QUESTION, tools=[function_tool(weather)])))

    def stream_tools(self) -> Answer:
        return asyncio.run(self._stream(ignore, tools=[function_tool(weather)]))

    def structured(self) -> tuple[str, str]:
        city = asyncio.run(self._run(QUESTION, output_type=City)).final_output
        return city.name, city.country

    def image(self, data: bytes) -> Answer:
        image_url = data_url("image/png", data)
        return self._look_at({"type": "input_image", "image_url": image_url, "detail": "auto"})

    def pdf(self, data: bytes) -> Answer:
        file_data = data_url("application/pdf", data)
        return self._look_at(
            {"type": "input_file", "file_data": file_data, "filename": "paris.pdf"}
        )

    def second_turn(self) -> Answer:
        return asyncio.run(self._second_turn())

    async def _second_turn(self) -> Answer:
        async with self._client() as client:
            agent = self._agent(client, tools=[function_tool(weather)])
            first = await Runner.run(agent, QUESTION, run_config=self.config)
            asked = {"role": "user", "content": "And tomorrow?"}
            second = Runner.run_streamed(
                agent, [*first.to_input_list(), asked], run_config=self.config
            )
            async for _ in second.stream_events():
                pass
            asked = {"role": "user", "content": "And then?"}
            asking = [*second.to_input_list(), asked]
            return _answer(await Runner.run(agent, asking, run_config=self.config))

    def _look_at(self, part: dict[str, Any]) -> Answer:
        content = [{"type": "input_text", "text": "What is this?"}, part]
        return _answer(asyncio.run(self._run([{"role": "user", "content": content}])))

    async def _run(self, prompt: Any, **options: Any) -> Any:
        async with self._client() as client:
            agent = self._agent(client, **options)
            return await Runner.run(agent, prompt, run_config=self.config)

    async def _stream(self, heard: Callable[[str], object], **options: Any) -> Answer:
        async with self._client() as client:
            agent = self._agent(client, **options)
            result = Runner.run_streamed(agent, QUESTION, run_config=self.config)
            pieces: list[str] = []
            async for event in result.stream_events():
                if event.type != "raw_response_event":
                    continue
                if event.data.type == "response.output_text.delta":
                    pieces.append(event.data.delta)
                    heard(event.data.delta)
            answer = _answer(result)
            return Answer("".join(pieces), answer.usage, answer.cost, len(pieces))

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.endpoint.url,
            api_key=self.endpoint.key,
            default_headers=dict(self.endpoint.headers),
            max_retries=0,
        )

    def _agent(self, client: openai.AsyncOpenAI, **options: Any) -> Any:
        settings = ModelSettings(include_usage=True, preserve_raw_usage=True)
        model = self._model(client)
        return Agent("assistant", model=model, model_settings=settings, **options)

    def _model(self, client: openai.AsyncOpenAI) -> Any:
        return OpenAIChatCompletionsModel(self.endpoint.model, client)


def _answer(result: Any) -> Answer:
    usage = result.context_wrapper.usage
    tokens = Tokens(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.input_tokens_details.cached_tokens,
        usage.output_tokens_details.reasoning_tokens,
    )
    return Answer(result.final_output, tokens, cost_of(result.raw_responses[-1].raw_usage or {}))
