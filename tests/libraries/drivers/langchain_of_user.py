"""LangChain, by ``ChatWattfare``."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar

from libraries.drivers import langchain_library
from libraries.drivers.base import Endpoint, user_of
from wattfare_mw.integrations.langchain import ChatWattfare


class Driver(langchain_library.Driver):
    """ChatWattfare, with a LangGraph graph for the tools."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})
    typed: ClassVar = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.chat: Any = ChatWattfare(user=user_of(endpoint), model=endpoint.model)

    def _cost(self, message: Any) -> Decimal | None:
        return Decimal(str(message.response_metadata["cost_usd"]))
