"""pydantic-ai, with its model for OpenRouter, which keeps the cost and the reasoning."""

from __future__ import annotations

from typing import Any, ClassVar

import openai
from pydantic_ai.models.openrouter import OpenRouterModel
from pydantic_ai.providers.openrouter import OpenRouterProvider

from libraries.drivers import pydantic_ai_library


class Driver(pydantic_ai_library.Driver):
    """An Agent on an OpenRouterModel."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})

    def _model(self, client: openai.AsyncOpenAI) -> Any:
        return OpenRouterModel(
            self.endpoint.model, provider=OpenRouterProvider(openai_client=client)
        )
