"""pydantic-ai, by ``WattfareProvider``."""

from __future__ import annotations

from typing import Any, ClassVar

import openai
from pydantic_ai.models.openai import OpenAIChatModel

from libraries.drivers import pydantic_ai_library
from libraries.drivers.base import Endpoint, user_of
from wattfare_mw.integrations.pydantic_ai import WattfareProvider


class Driver(pydantic_ai_library.Driver):
    """An Agent on an OpenAIChatModel with a WattfareProvider."""

    typed: ClassVar = True

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.provider = WattfareProvider(user_of(endpoint))

    def _client(self) -> openai.AsyncOpenAI:
        return self.provider.client

    def _model(self, client: openai.AsyncOpenAI) -> Any:
        return OpenAIChatModel(self.endpoint.model, provider=self.provider)
