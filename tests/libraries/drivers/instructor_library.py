"""instructor."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import instructor
from instructor.processing.multimodal import PDF, Image
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
)


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """instructor.from_openai. All its answers are structured; its text is a city's name."""

    shows_cost: ClassVar = frozenset({"ask"})
    drops_usage: ClassVar = frozenset({"stream"})
    lacks: ClassVar = {
        "tools": "its answers are models of pydantic",
        "streamed tools": "its answers are models of pydantic",
        "cap in a run": "it has no run of several calls",
    }
    # It retries a stream as a whole, so it reads all of it first.
    hears_late: ClassVar = True
    text: ClassVar = "Paris France"

    def __init__(self, endpoint: Endpoint) -> None:
        self.model = endpoint.model
        self.client = user_of(endpoint).openai()

    def ask(self, text: str = QUESTION) -> Answer:
        return self._ask(says(text))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        last: Any = None
        pieces = 0
        for city in self._client().create_partial(
            response_model=City,
            model=self.model,
            messages=says(QUESTION),
            stream_options={"include_usage": True},
            max_retries=0,
        ):
            last = city
            pieces += 1
            heard(str(city))
        return Answer(f"{last.name} {last.country}", None, None, pieces)

    def structured(self) -> tuple[str, str]:
        found = {
            (city.name, city.country)
            for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA)
            for city in [
                self._client(mode).create(
                    response_model=City, model=self.model, messages=says(QUESTION), max_retries=0
                )
            ]
        }
        (city,) = found
        return city

    def image(self, data: bytes) -> Answer:
        image = Image.from_base64(_data_url("image/png", data))
        return self._ask([{"role": "user", "content": ["What is this?", image]}])

    def pdf(self, data: bytes) -> Answer:
        document = PDF.from_base64(_data_url("application/pdf", data))
        return self._ask([{"role": "user", "content": ["What is this?", document]}])

    def second_turn(self) -> Answer:
        messages = says(QUESTION)
        _, completion = self._create(messages)
        message = completion.choices[0].message
        messages += [message.model_dump()]
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": "Right."}
            for call in message.tool_calls or []
        ]
        return self._ask([*messages, *says("And another one?")])

    def _ask(self, messages: list[Any]) -> Answer:
        city, completion = self._create(messages)
        usage = completion.usage
        return Answer(f"{city.name} {city.country}", openai_tokens(usage), cost_of(usage))

    def _create(self, messages: list[Any]) -> tuple[City, Any]:
        return self._client().create_with_completion(
            response_model=City, model=self.model, messages=messages, max_retries=0
        )

    def _client(self, mode: Any = instructor.Mode.TOOLS) -> Any:
        return instructor.from_openai(self.client, mode=mode)


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
