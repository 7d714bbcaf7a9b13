"""The built-in model: repeats the last user message. A word is a token, so a test can compute the
cost to the nano-dollar."""

from __future__ import annotations

import asyncio
import secrets
import time
from decimal import Decimal
from typing import Any

from ... import money, sse
from ...errors import invalid_request
from ...offload import in_thread
from ...types import encode
from ..chat.meter import Meter
from ..chat.price import Price
from ..chat.request import DEFAULT_MAX_TOKENS, ChatRequest, text_of
from ..records import Bounds
from .credential import Credential

#: USD for one token.
PRICE = Price.flat(Decimal("0.000001"), Decimal("0.000002"))
#: The pause of each model before a word, in seconds.
MODELS = {"wattfare/echo": 0.0, "wattfare/echo-slow": 0.05}


class Echo:
    """The provider of ``wattfare/echo`` and ``wattfare/echo-slow``.

    Args:
        default_max_tokens: the limit of a call that names none, in tokens.
        hold: what a call holds if a field has no bound, in nano-dollars. Such a field has no effect
            here, but an app can test how a held call behaves.
    """

    keeps_records = False

    def __init__(
        self, *, default_max_tokens: int = DEFAULT_MAX_TOKENS, hold: int | None = None
    ) -> None:
        self._default_max_tokens = default_max_tokens
        self._hold = hold

    async def models(self) -> bytes:
        """Both, with their prices."""
        pricing = {"prompt": str(PRICE.rates.prompt), "completion": str(PRICE.rates.completion)}
        return encode(
            {
                "object": "list",
                "data": [
                    {
                        "id": model,
                        "object": "model",
                        "created": 0,
                        "owned_by": "wattfare",
                        "name": model,
                        "pricing": pricing,
                    }
                    for model in MODELS
                ],
            }
        )

    async def prepare(self, request: ChatRequest, request_id: str) -> EchoJob:
        """The words of the answer, and their exact price."""
        if request.model not in MODELS:
            raise invalid_request(
                f"There is no model {request.model!r} here: {' and '.join(MODELS)} are built in."
            )
        if request.n != 1:
            raise invalid_request("This model gives one answer for each call: `n` is 1.")
        if request.large:
            return await in_thread(EchoJob, request, self._default_max_tokens, self._hold)
        return EchoJob(request, self._default_max_tokens, self._hold)

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """There are no records."""
        return None

    async def close(self) -> None:
        """Do nothing: there are no connections."""


class EchoJob:
    """One answer of the built-in model."""

    lowered: int | None = None
    generation_id: str | None = None

    def __init__(
        self,
        request: ChatRequest,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
        hold: int | None = None,
    ) -> None:
        texts = [text_of(message) for message in request.messages]
        said = [
            text
            for message, text in zip(request.messages, texts, strict=True)
            if message["role"] == "user"
        ]
        if not said:
            raise invalid_request("This model repeats the last user message, and there is none.")
        least, most = request.limits(default_max_tokens)
        self._words = said[-1].split()
        self._limit = min(most, len(self._words))
        self.detaches = not request.stream
        self._begun = False
        self._said = 0  # the number of words
        self._request = request
        self._pause = MODELS[request.model]
        self._about: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
        }
        self.meter = Meter(PRICE, sum(len(text.split()) for text in texts))
        # The answer is known, so this is the exact cost.
        self.bounds = Bounds(
            PRICE.bound(self.meter.prompt_tokens, min(least, self._limit)),
            PRICE.bound(self.meter.prompt_tokens, self._limit),
        )
        if request.held and hold is not None:
            self.bounds = self.bounds.holding(hold)

    async def tighten(self) -> Bounds | None:
        """The cost is known already."""
        return None

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Start the answer, with as many words as this amount pays for."""
        self.meter.granted = granted
        self.meter.sent = True
        limit = PRICE.pays_for(granted, self.meter.prompt_tokens, 1, self._limit)
        if limit < self._limit:
            self.lowered = self._limit = limit

    @property
    def _finish(self) -> str:
        return "stop" if self._limit == len(self._words) else "length"

    async def body(self) -> bytes:
        """The whole answer, after its last word."""
        words = [await self._say() for _ in range(self._limit)]
        self._complete()
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish, "logprobs": None}
        return encode(
            {
                **self._about,
                "object": "chat.completion",
                "choices": [choice],
                "usage": self._usage(),
            }
        )

    async def read_events(self) -> bytes:
        """One word per chunk."""
        if not self._begun:
            self._begun = True
            return self._chunk({"role": "assistant", "content": ""})
        if self._said < self._limit:
            return self._chunk({"content": await self._say()})
        self._complete()
        last = self._chunk({}, finish=self._finish)
        if self._request.include_usage:
            last += self._event({"choices": [], "usage": self._usage()})
        return last + sse.write(sse.DONE)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    async def _say(self) -> str:
        """The next word and its space, counted by the meter."""
        # A pause of zero still lets other tasks run.
        await asyncio.sleep(self._pause)
        self.meter.count()
        word = self._words[self._said]
        self._said += 1
        return word if self._said == self._limit else word + " "

    def _complete(self) -> None:
        self.meter.generated = self.meter.complete = True

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.meter.prompt_tokens, self.meter.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "cost": money.usd(self.meter.cost()),
        }

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._event({"choices": [choice]})

    def _event(self, fields: dict[str, Any]) -> bytes:
        return sse.write(encode({**self._about, "object": "chat.completion.chunk", **fields}))
