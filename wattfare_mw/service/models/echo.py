"""The built-in model. It repeats the last user message. A word is a token, so a test can compute
the exact cost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
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
        default_max_tokens: the token limit of a call that does not set one.
        hold: the amount that a call holds if a field's cost has no bound, in nano-dollars. Such a
            field has no effect on this model, but an app can test how a held call behaves.
    """

    keeps_records = False

    def __init__(
        self, *, default_max_tokens: int = DEFAULT_MAX_TOKENS, hold: int | None = None
    ) -> None:
        self._default_max_tokens = default_max_tokens
        self._hold = hold

    async def models(self) -> bytes:
        """The list of both models, with their prices."""
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

    def names_of(self, model: str) -> tuple[str, ...]:
        """Return the name unchanged."""
        return (model,)

    async def prepare(self, request: ChatRequest, request_id: str) -> EchoJob:
        """Prepare the answer, with its exact price."""
        if request.model not in MODELS:
            raise invalid_request(
                f"There is no model {request.model!r}. The built-in models are"
                f" {' and '.join(MODELS)}."
            )
        if request.n != 1:
            raise invalid_request("This model supports only one answer per call, so `n` must be 1.")
        if request.large:
            return await in_thread(self._job, request)
        return self._job(request)

    def _job(self, request: ChatRequest) -> EchoJob:
        texts = [text_of(message) for message in request.messages]
        said = [
            text
            for message, text in zip(request.messages, texts, strict=True)
            if message["role"] == "user"
        ]
        if not said:
            raise invalid_request(
                "This model repeats the last user message, but `messages` has no user message."
            )
        return EchoJob(
            request,
            words_of(said[-1]),
            sum(len(text.split()) for text in texts),
            default_max_tokens=self._default_max_tokens,
            hold=self._hold,
            pause=MODELS[request.model],
        )

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """Return None: this provider keeps no records."""
        return None

    async def close(self) -> None:
        """Do nothing: there are no connections."""


def words_of(text: str) -> list[str]:
    """Split a text into words. Each word except the last keeps the white space after it."""
    words = text.split()
    return [f"{word} " for word in words[:-1]] + words[-1:]


class EchoJob:
    """One answer. Each word is a token.

    Args:
        words: the words of the answer, with the white space around them.
        prompt_tokens: the tokens of the prompt.
        default_max_tokens: the token limit of a call that does not set one.
        hold: the amount that the call holds if it has a field whose cost has no bound, in
            nano-dollars.
        pause: the time before each word, in seconds.
    """

    lowered: int | None = None
    generation_id: str | None = None

    def __init__(
        self,
        request: ChatRequest,
        words: Sequence[str],
        prompt_tokens: int,
        *,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
        hold: int | None = None,
        pause: float = 0,
    ) -> None:
        least, most = request.limits(default_max_tokens)
        self._words = words
        self._limit = min(most, len(words))
        self.detaches = not request.stream
        self._begun = False
        self._words_sent = 0  # the number of words
        self._request = request
        self._pause = pause
        self._about: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
        }
        self.meter = Meter(PRICE, prompt_tokens)
        # The answer is known in advance, so this is the exact cost.
        self.bounds = Bounds(
            PRICE.bound(prompt_tokens, min(least, self._limit)),
            PRICE.bound(prompt_tokens, self._limit),
        )
        if request.held and hold is not None:
            self.bounds = self.bounds.holding(hold, request.held)

    async def tighten(self) -> Bounds | None:
        """Return None: the bounds are exact."""
        return None

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Start the answer. Shorten it to the words that this amount pays for."""
        self.meter.granted = granted
        self.meter.sent = True
        limit = PRICE.pays_for(granted, self.meter.prompt_tokens, 1, self._limit)
        if limit < self._limit:
            self.lowered = self._limit = limit

    @property
    def _finish(self) -> str:
        return "stop" if self._limit == len(self._words) else "length"

    async def body(self) -> bytes:
        """Return the whole answer, after the time for its last word."""
        words = [await self._next_word() for _ in range(self._limit)]
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
        """Return the next chunk, with one word."""
        if not self._begun:
            self._begun = True
            return self._chunk({"role": "assistant", "content": ""})
        if self._words_sent < self._limit:
            return self._chunk({"content": await self._next_word()})
        self._complete()
        last = self._chunk({}, finish=self._finish)
        if self._request.include_usage:
            last += self._event({"choices": [], "usage": self._usage()})
        return last + sse.write(sse.DONE)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    async def _next_word(self) -> str:
        """Wait for the pause, and return the next word."""
        await self._pass_token()
        word = self._words[self._words_sent]
        self._words_sent += 1
        return word.rstrip() if self._words_sent == self._limit < len(self._words) else word

    async def _pass_token(self) -> None:
        # Even without a pause, let other tasks run.
        await asyncio.sleep(self._pause)
        self.meter.count()

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

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._event({"choices": [choice]})

    def _event(self, fields: dict[str, Any]) -> bytes:
        return sse.write(encode({**self._about, "object": "chat.completion.chunk", **fields}))
