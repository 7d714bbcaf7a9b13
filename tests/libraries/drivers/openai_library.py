"""The openai package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import openai
from pydantic import BaseModel
from support.http_client import ssl_context

from libraries.drivers import base
from libraries.drivers.base import (
    QUESTION,
    Answer,
    Endpoint,
    cost_of,
    ignore,
    openai_tokens,
    says,
    weather,
)
from libraries.model import data_url

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """The package as an app uses it."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.model = endpoint.model
        self.client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key,
            default_headers=dict(endpoint.headers),
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False, verify=ssl_context()),
        )
        self.create = self.client.chat.completions.create

    def ask(self, text: str = QUESTION) -> Answer:
        return self._answer(self.create(model=self.model, messages=says(text)))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        pieces: list[str] = []
        usage: Any = None
        for chunk in self.create(
            model=self.model,
            messages=says(QUESTION),
            stream=True,
            stream_options={"include_usage": True},
        ):
            usage = chunk.usage or usage
            if chunk.choices and (text := chunk.choices[0].delta.content):
                pieces.append(text)
                heard(text)
        return Answer("".join(pieces), openai_tokens(usage), cost_of(usage), len(pieces))

    def tools(self) -> Answer:
        messages: list[Any] = says(QUESTION)
        first = self.create(model=self.model, messages=messages, tools=[WEATHER])
        message = first.choices[0].message
        assert message.tool_calls, message
        messages += [message, *map(self._call, message.tool_calls)]
        return self._answer(self.create(model=self.model, messages=messages, tools=[WEATHER]))

    def stream_tools(self) -> Answer:
        messages: list[Any] = says(QUESTION)
        with self.client.chat.completions.stream(
            model=self.model, messages=messages, tools=[WEATHER]
        ) as events:
            message = events.get_final_completion().choices[0].message
        assert message.tool_calls, message
        assert message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}
        messages += [message, *map(self._call, message.tool_calls)]
        with self.client.chat.completions.stream(
            model=self.model, messages=messages, tools=[WEATHER]
        ) as events:
            return Answer(events.get_final_completion().choices[0].message.content or "")

    def structured(self) -> tuple[str, str]:
        answer = self.client.chat.completions.parse(
            model=self.model, messages=says(QUESTION), response_format=City
        )
        city = answer.choices[0].message.parsed
        assert city is not None
        return city.name, city.country

    def image(self, data: bytes) -> Answer:
        url = {"url": data_url("image/png", data), "detail": "auto"}
        return self._look_at({"type": "image_url", "image_url": url})

    def pdf(self, data: bytes) -> Answer:
        file = {"filename": "paris.pdf", "file_data": data_url("application/pdf", data)}
        return self._look_at({"type": "file", "file": file})

    def second_turn(self) -> Answer:
        messages: list[Any] = says(QUESTION)
        first = self.client.chat.completions.parse(
            model=self.model, messages=messages, response_format=City
        )
        # The whole message, with `parsed` and all other fields.
        messages += [first.choices[0].message, *says("And tomorrow?")]
        second = self.create(model=self.model, messages=messages)
        messages += [second.choices[0].message.model_dump(), *says("And then?")]
        return self._answer(self.create(model=self.model, messages=messages))

    def _look_at(self, part: dict[str, Any]) -> Answer:
        content = [{"type": "text", "text": "What is this?"}, part]
        messages: Any = [{"role": "user", "content": content}]
        return self._answer(self.create(model=self.model, messages=messages))

    def _call(self, call: Any) -> dict[str, Any]:
        result = weather(**json.loads(call.function.arguments))
        return {"role": "tool", "tool_call_id": call.id, "content": result}

    def _answer(self, answer: Any) -> Answer:
        text = answer.choices[0].message.content
        return Answer(text, openai_tokens(answer.usage), cost_of(answer.usage))
