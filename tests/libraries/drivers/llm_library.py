"""llm, the package behind the command of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import llm
from llm.default_plugins.openai_models import Chat
from pydantic import BaseModel

from libraries.drivers import base
from libraries.drivers.base import QUESTION, Answer, Endpoint, Tokens, cost_of, ignore, weather


class City(BaseModel):
    """A city."""

    name: str
    country: str


class _Chat(Chat):
    """Without the retries of the openai package, which sleep in a test of a 429."""

    def get_client(self, key: Any, *, async_: bool = False) -> Any:
        return super().get_client(key, async_=async_).with_options(max_retries=0)


class Driver(base.Driver):
    """A Chat model of its OpenAI plug-in, as `extra-openai-models.yaml` creates one."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.key = endpoint.key
        self.model = _Chat(
            endpoint.model,
            api_base=endpoint.url,
            headers=dict(endpoint.headers),
            vision=True,
            supports_schema=True,
            supports_tools=True,
        )

    def ask(self, text: str = QUESTION) -> Answer:
        return self._ask(text)

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        pieces: list[str] = []
        response = self.model.prompt(QUESTION, key=self.key, stream=True)
        for piece in response:
            pieces.append(piece)
            heard(piece)
        answer = _answer(response)
        return Answer(answer.text, answer.usage, answer.cost, len(pieces))

    def tools(self) -> Answer:
        return self._chain(stream=False)

    def stream_tools(self) -> Answer:
        return self._chain(stream=True)

    def structured(self) -> tuple[str, str]:
        city = City.model_validate_json(self._ask(QUESTION, schema=City).text)
        return city.name, city.country

    def image(self, data: bytes) -> Answer:
        return self._ask(
            "What is this?", attachments=[llm.Attachment(content=data, type="image/png")]
        )

    def pdf(self, data: bytes) -> Answer:
        attached = llm.Attachment(content=data, type="application/pdf")
        return self._ask("What is this?", attachments=[attached])

    def second_turn(self) -> Answer:
        conversation = self.model.conversation(tools=[weather])
        list(conversation.chain(QUESTION, key=self.key, stream=False))
        list(conversation.chain("And tomorrow?", key=self.key, stream=True))
        return Answer(conversation.chain("And then?", key=self.key, stream=False).text())

    def _ask(self, text: str, **options: Any) -> Answer:
        return _answer(self.model.prompt(text, key=self.key, stream=False, **options))

    def _chain(self, *, stream: bool) -> Answer:
        chain = self.model.conversation(tools=[weather]).chain(
            QUESTION, key=self.key, stream=stream
        )
        return Answer("".join(chain))


def _answer(response: Any) -> Answer:
    text = response.text()
    usage = response.usage()
    details = usage.details or {}
    prompt = details.get("prompt_tokens_details") or {}
    completion = details.get("completion_tokens_details") or {}
    tokens = Tokens(
        usage.input,
        usage.output,
        None,
        prompt.get("cached_tokens"),
        completion.get("reasoning_tokens"),
    )
    return Answer(text, tokens, cost_of(details))
