"""litellm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, ClassVar

# Otherwise, it downloads a list of prices at import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel

from libraries.drivers import base
from libraries.drivers.base import (
    QUESTION,
    Answer,
    Endpoint,
    cost_of,
    ignore,
    openai_tokens,
    says,
    user_of,
    weather,
)
from libraries.model import data_url

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """litellm.completion, with its provider `openai`."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.options: dict[str, Any] = {
            "model": f"openai/{endpoint.model}",
            "client": user_of(endpoint).openai(),
            "max_retries": 0,
        }

    def ask(self, text: str = QUESTION) -> Answer:
        return self._ask(says(text))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        pieces: list[str] = []
        usage: Any = None
        for chunk in self._stream(says(QUESTION)):
            usage = getattr(chunk, "usage", None) or usage
            if chunk.choices and (text := chunk.choices[0].delta.content):
                pieces.append(text)
                heard(text)
        return Answer("".join(pieces), openai_tokens(usage), cost_of(usage), len(pieces))

    def tools(self) -> Answer:
        messages = says(QUESTION)
        first: Any = litellm.completion(messages=messages, tools=[WEATHER], **self.options)
        return self._with_results(messages, first)

    def stream_tools(self) -> Answer:
        messages = says(QUESTION)
        chunks = list(self._stream(messages, tools=[WEATHER]))
        return self._with_results(messages, litellm.stream_chunk_builder(chunks))

    def structured(self) -> tuple[str, str]:
        answer = self._ask(says(QUESTION), response_format=City)
        city = City.model_validate_json(answer.text)
        return city.name, city.country

    def image(self, data: bytes) -> Answer:
        return self._look_at(
            {"type": "image_url", "image_url": {"url": data_url("image/png", data)}}
        )

    def pdf(self, data: bytes) -> Answer:
        file = {"filename": "paris.pdf", "file_data": data_url("application/pdf", data)}
        return self._look_at({"type": "file", "file": file})

    def second_turn(self) -> Answer:
        messages = says(QUESTION)
        first: Any = litellm.completion(messages=messages, **self.options)
        messages += [first.choices[0].message, *says("And tomorrow?")]
        second: Any = litellm.completion(messages=messages, **self.options)
        messages += [second.choices[0].message.model_dump(), *says("And then?")]
        third: Any = litellm.stream_chunk_builder(list(self._stream(messages)))
        messages += [third.choices[0].message, *says("And later?")]
        return self._ask(messages)

    def _ask(self, messages: list[Any], **options: Any) -> Answer:
        answer: Any = litellm.completion(messages=messages, **self.options, **options)
        text = answer.choices[0].message.content
        return Answer(text, openai_tokens(answer.usage), cost_of(answer.usage))

    def _stream(self, messages: list[Any], **options: Any) -> Any:
        with_usage = {"include_usage": True}
        return litellm.completion(
            messages=messages,
            stream=True,
            stream_options=with_usage,
            **self.options,
            **options,
        )

    def _with_results(self, messages: list[Any], answer: Any) -> Answer:
        message = answer.choices[0].message
        messages = [*messages, message]
        for call in message.tool_calls:
            result = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return self._ask(messages, tools=[WEATHER])

    def _look_at(self, part: dict[str, Any]) -> Answer:
        content = [{"type": "text", "text": "What is this?"}, part]
        return self._ask([{"role": "user", "content": content}])
