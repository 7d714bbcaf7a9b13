"""llama-index, with its package for OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from libraries.drivers import base
from libraries.drivers.base import (
    QUESTION,
    Answer,
    Endpoint,
    cost_of,
    ignore,
    openai_tokens,
    user_of,
    weather,
)


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """OpenAILike, called directly, as an agent would."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.llm = OpenAILike(
            model=endpoint.model,
            openai_client=user_of(endpoint).openai(),
            max_retries=0,
            is_chat_model=True,
            is_function_calling_model=True,
            context_window=128_000,
        )

    def ask(self, text: str = QUESTION) -> Answer:
        return self._ask(_says(text))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        pieces: list[str] = []
        usage: Any = None
        for response in self.llm.stream_chat(
            _says(QUESTION), stream_options={"include_usage": True}
        ):
            usage = response.raw.usage or usage
            if response.delta:
                pieces.append(response.delta)
                heard(response.delta)
        return Answer("".join(pieces), openai_tokens(usage), cost_of(usage), len(pieces))

    def tools(self) -> Answer:
        tool = FunctionTool.from_defaults(weather)
        messages = _says(QUESTION)
        response = self.llm.chat_with_tools([tool], chat_history=messages)
        return self._with_results(tool, messages, response)

    def stream_tools(self) -> Answer:
        tool = FunctionTool.from_defaults(weather)
        messages = _says(QUESTION)
        *_, last = self.llm.stream_chat_with_tools([tool], chat_history=messages)
        return self._with_results(tool, messages, last)

    def structured(self) -> tuple[str, str]:
        city: Any = self.llm.as_structured_llm(City).complete(QUESTION).raw
        return city.name, city.country

    def image(self, data: bytes) -> Answer:
        return self._look_at(ImageBlock(image=data, image_mimetype="image/png"))

    def pdf(self, data: bytes) -> Answer:
        return self._look_at(
            DocumentBlock(data=data, document_mimetype="application/pdf", title="paris.pdf")
        )

    def second_turn(self) -> Answer:
        messages = _says(QUESTION)
        for question in ("And tomorrow?", "And then?"):
            messages += [self.llm.chat(messages).message, *_says(question)]
        return self._ask(messages)

    def _ask(self, messages: list[ChatMessage]) -> Answer:
        response = self.llm.chat(messages)
        usage: Any = response.raw.usage  # type: ignore[union-attr]
        return Answer(response.message.content or "", openai_tokens(usage), cost_of(usage))

    def _with_results(self, tool: Any, messages: list[ChatMessage], response: Any) -> Answer:
        messages = [*messages, response.message]
        for call in self.llm.get_tool_calls_from_response(response):
            messages.append(
                ChatMessage(
                    role=MessageRole.TOOL,
                    content=str(tool(**call.tool_kwargs)),
                    additional_kwargs={"tool_call_id": call.tool_id},
                )
            )
        last = self.llm.chat_with_tools([tool], chat_history=messages)
        return Answer(last.message.content or "")

    def _look_at(self, block: Any) -> Answer:
        text = TextBlock(text="What is this?")
        return self._ask([ChatMessage(role=MessageRole.USER, blocks=[text, block])])


def _says(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]
