"""The Vercel AI SDK, in Node."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

from support.node import Sdk, package_version, run_sdk

from libraries.drivers import base
from libraries.drivers.base import QUESTION, Answer, Endpoint, Tokens, cost_of, ignore

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "country": {"type": "string"}},
    "required": ["name", "country"],
    "additionalProperties": False,
}


class SdkError(Exception):
    """What the SDK's own error holds."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told.get("message"))
        self.status_code = told.get("status")
        self.body = told.get("body") or {"code": told.get("code"), "message": told.get("message")}
        self.headers = told.get("headers") or {}


class Driver(base.Driver):
    """generateText and streamText, with @ai-sdk/openai-compatible."""

    shows_cost: ClassVar = frozenset({"ask", "stream"})
    drops_fields: ClassVar = True
    version: ClassVar = staticmethod(package_version)

    def __init__(self, endpoint: Endpoint) -> None:
        self.sdk = _sdk()
        self.request = {
            "baseURL": endpoint.url,
            "headers": {**endpoint.headers, "authorization": f"Bearer {endpoint.key}"},
            "model": endpoint.model,
        }

    def ask(self, text: str = QUESTION) -> Answer:
        return self._ask(prompt=text)

    def stream(self, heard: Callable[[str], object] = ignore) -> Answer:
        return self._stream(heard, prompt=QUESTION)

    def tools(self) -> Answer:
        return self._ask(prompt=QUESTION, tool=True)

    def stream_tools(self) -> Answer:
        return self._stream(ignore, prompt=QUESTION, tool=True)

    def structured(self) -> tuple[str, str]:
        city = self._generate(prompt=QUESTION, schema=SCHEMA)["output"]
        return city["name"], city["country"]

    def image(self, data: bytes) -> Answer:
        return self._look_at({"type": "image", "image": base64.b64encode(data).decode()})

    def pdf(self, data: bytes) -> Answer:
        encoded = base64.b64encode(data).decode()
        return self._look_at({"type": "file", "data": encoded, "mediaType": "application/pdf"})

    def second_turn(self) -> Answer:
        asked: Any = [{"role": "user", "content": QUESTION}]
        first = self._generate(messages=asked, tool=True)["messages"]
        asked += [*first, {"role": "user", "content": "And tomorrow?"}]
        second = self.sdk.stream(**self.request, messages=asked, tool=True).end()["messages"]
        asked += [*second, {"role": "user", "content": "And then?"}]
        return self._ask(messages=asked, tool=True)

    def _look_at(self, part: dict[str, Any]) -> Answer:
        content = [{"type": "text", "text": "What is this?"}, part]
        return self._ask(messages=[{"role": "user", "content": content}])

    def _ask(self, **more: Any) -> Answer:
        ended = self._generate(**more)
        usage = ended["usage"]
        return Answer(ended["text"], _tokens(usage), cost_of(usage.get("raw") or {}))

    def _generate(self, **more: Any) -> dict[str, Any]:
        ended = self.sdk.generate(**self.request, **more)
        if ended["event"] == "failed":
            raise SdkError(ended)
        return ended

    def _stream(self, heard: Callable[[str], object], **more: Any) -> Answer:
        job = self.sdk.stream(**self.request, **more)
        pieces: list[str] = []
        while (said := job.next())["event"] != "end":
            if said["event"] in ("error", "failed"):
                raise SdkError(said)
            pieces.append(said["text"])
            heard(said["text"])
        usage = said["usage"]
        return Answer("".join(pieces), _tokens(usage), cost_of(said.get("raw") or {}), len(pieces))


@cache
def _sdk() -> Sdk:
    """One process for all tests; it ends with this one."""
    import atexit

    running = run_sdk()
    atexit.register(running.__exit__, None, None, None)
    return running.__enter__()


def _tokens(usage: dict[str, Any]) -> Tokens:
    return Tokens(
        usage["inputTokens"],
        usage["outputTokens"],
        usage["totalTokens"],
        usage["inputTokenDetails"]["cacheReadTokens"],
        usage["outputTokenDetails"]["reasoningTokens"],
    )
