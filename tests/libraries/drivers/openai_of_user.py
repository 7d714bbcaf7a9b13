"""The openai package, by ``user.openai()``."""

from __future__ import annotations

from typing import ClassVar

from libraries.drivers import openai_library
from libraries.drivers.base import Endpoint, user_of


class Driver(openai_library.Driver):
    """The package, with the client of ``user.openai()``."""

    typed: ClassVar = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.model = endpoint.model
        self.client = user_of(endpoint).openai()
        self.create = self.client.chat.completions.create
