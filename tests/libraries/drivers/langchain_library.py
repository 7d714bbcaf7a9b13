"""langchain-openai, and LangGraph's agent on it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

from libraries.drivers import base
from libraries.drivers.base import QUESTION, Answer, Endpoint, Tokens, cost_of, ignore, weather
from libraries.model import data_url


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Driver(base.Driver):
    """ChatOpenAI, with a LangGraph graph for the tools."""

    shows_cost: ClassVar = frozenset({"ask"})

    def __init__(self, endpoint: Endpoint) -> None:
        self.chat = ChatOpenAI(
            model=endpoint.model,
            base_url=endpoint.url,
            api_key=endpoint.key,  # type: ignore[arg-type]
            default_headers=dict(endpoint.headers),
            max_retries=0,
            # Off by default with another `base_url`.
            stream_usage=True,
        )

    def ask(self, text: str = QUESTION) -> Answer:
        return self._answer(self.chat.invoke(text))

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        whole: Any = None
        pieces = 0
        for chunk in self.chat.stream(QUESTION):
            whole = chunk if whole is None else whole + chunk
            if chunk.text:
                pieces += 1
                heard(str(chunk.text))
        answer = self._answer(whole)
        return Answer(answer.text, answer.usage, answer.cost, pieces)

    def tools(self) -> Answer:
        return self._answer(self._graph().invoke(_asked())["messages"][-1])

    def stream_tools(self) -> Answer:
        said = ""
        for message, _ in self._graph().stream(_asked(), stream_mode="messages"):  # type: ignore[misc]
            if message.type == "AIMessageChunk":
                said += str(message.text)
        return Answer(said)

    def structured(self) -> tuple[str, str]:
        found = {
            (city.name, city.country)
            for method in ("json_schema", "function_calling")
            for city in [self.chat.with_structured_output(City, method=method).invoke(QUESTION)]
        }
        (city,) = found
        return city

    def image(self, data: bytes) -> Answer:
        answers = [
            self._look_at({"type": "image_url", "image_url": {"url": data_url("image/png", data)}}),
            self._look_at(
                {
                    "type": "image",
                    "base64": base64.b64encode(data).decode(),
                    "mime_type": "image/png",
                }
            ),
        ]
        return answers[-1]

    def pdf(self, data: bytes) -> Answer:
        return self._look_at(
            {
                "type": "file",
                "base64": base64.b64encode(data).decode(),
                "mime_type": "application/pdf",
                "filename": "paris.pdf",
            }
        )

    def second_turn(self) -> Answer:
        messages: list[Any] = [HumanMessage(QUESTION)]
        for question in ("And tomorrow?", "And then?"):
            messages += [self.chat.invoke(messages), HumanMessage(question)]
        whole: Any = None
        for chunk in self.chat.stream(messages):
            whole = chunk if whole is None else whole + chunk
        messages += [whole, HumanMessage("And later?")]
        return self._answer(self.chat.invoke(messages))

    def _graph(self) -> Any:
        tools = [tool(weather)]
        bound = self.chat.bind_tools(tools)
        graph = StateGraph(MessagesState)
        graph.add_node("model", lambda state: {"messages": bound.invoke(state["messages"])})
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        return graph.compile()

    def _look_at(self, part: dict[str, Any]) -> Answer:
        content = [{"type": "text", "text": "What is this?"}, part]
        return self._answer(self.chat.invoke([HumanMessage(content=content)]))  # type: ignore[arg-type]

    def _answer(self, message: Any) -> Answer:
        usage = message.usage_metadata
        tokens = Tokens(
            usage["input_tokens"],
            usage["output_tokens"],
            usage["total_tokens"],
            usage.get("input_token_details", {}).get("cache_read"),
            usage.get("output_token_details", {}).get("reasoning"),
        )
        return Answer(str(message.text), tokens, self._cost(message))

    def _cost(self, message: Any) -> Decimal | None:
        return cost_of(message.response_metadata.get("token_usage") or {})


def _asked() -> Any:
    return {"messages": [HumanMessage(QUESTION)]}
