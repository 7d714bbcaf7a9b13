"""openai-agents, by ``WattfareModelProvider``."""

from __future__ import annotations

from typing import Any, ClassVar

import openai
from agents import RunConfig

from libraries.drivers import agents_library
from libraries.drivers.base import Endpoint, user_of
from wattfare_mw.integrations.agents import WattfareModelProvider


class Driver(agents_library.Driver):
    """An Agent that names its model, and a run with a WattfareModelProvider."""

    typed: ClassVar = True

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.user = user_of(endpoint)
        self.config = RunConfig(model_provider=WattfareModelProvider(self.user))

    def _client(self) -> openai.AsyncOpenAI:
        return self.user.async_openai()

    def _model(self, client: openai.AsyncOpenAI) -> Any:
        return self.endpoint.model
