"""An OpenAI-compatible API as the provider: bodies go up, answers come down as they are, and the
meter reads along."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from .. import sse
from ..errors import WattfareError, WattfareNetworkError
from ..transport import AsyncAnswer, AsyncTransport, HTTPRequest, async_transport
from . import upstream_answers as answers
from .chat import ChatRequest
from .metering import MAX_RESERVATION, Meter, Price, estimate_tokens
from .prices import read_prices
from .refusals import invalid

log = logging.getLogger("wattfare_mw.service")

#: What a call is given that names no limit, in tokens.
DEFAULT_MAX_TOKENS = 8192
#: How long a list of models, and the prices in it, is good for, in seconds.
MODELS_SECONDS = 600
CONNECT_SECONDS = 10.0
#: How long an upstream may be silent, in seconds: a model that thinks says nothing for minutes.
SILENCE_SECONDS = 600.0


class Upstream:
    """The provider behind ``--upstream``.

    Args:
        base_url: what ``/chat/completions`` and ``/models`` are put behind.
        key: sent as the bearer token, where there is one.
    """

    def __init__(
        self, base_url: str, key: str | None = None, *, transport: AsyncTransport | None = None
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._transport = transport or async_transport(None)
        self._models: tuple[float, bytes, dict[str, Price | None]] | None = None
        self._models_lock = asyncio.Lock()

    async def models(self) -> bytes:
        """The upstream's own list."""
        body, _ = await self._model_list()
        return body

    async def prepare(self, request: ChatRequest, request_id: str) -> UpstreamJob:
        """The call with its limit and its price."""
        _, prices = await self._model_list()
        if request.model not in prices:
            raise invalid(f"The upstream lists no model {request.model!r}.")
        price = prices[request.model]
        if price is None:
            raise invalid(
                f"The upstream names no fixed price for {request.model!r}, so that its cost "
                "cannot be bounded: choose a model with a price."
            )
        return UpstreamJob(self, request, price, request_id)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._transport.close()

    async def send(
        self, method: str, path: str, body: bytes | None, request_id: str | None
    ) -> AsyncAnswer:
        """Send a request; gives an answer of 200, or raises what any other stands for."""
        headers = {"accept-encoding": "identity", "accept": "application/json, text/event-stream"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        if request_id is not None:
            headers["x-request-id"] = request_id
        request = HTTPRequest(
            method, self._base_url + path, headers, body, CONNECT_SECONDS, SILENCE_SECONDS
        )
        try:
            answer = await self._transport.send(request)
            if answer.status == 200:
                return answer
            try:
                text = await answer.read()
            finally:
                await answer.close()
        except WattfareNetworkError as error:
            raise answers.unreachable(error) from None
        failure = answers.failure(answer.status, text, answer.headers)
        if failure.code == "funding_invalid" and self._key is not None:
            log.error("the upstream refuses the operator's key (%d)", answer.status)
        raise failure

    async def _model_list(self) -> tuple[bytes, dict[str, Price | None]]:
        async with self._models_lock:
            if self._models is None or self._models[0] < time.monotonic():
                body = await self._fetch_models()
                try:
                    prices = read_prices(body)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    raise answers.failed("The upstream's list of models is not one.") from None
                self._models = (time.monotonic() + MODELS_SECONDS, body, prices)
            return self._models[1:]

    async def _fetch_models(self) -> bytes:
        try:
            answer = await self.send("GET", "/models", None, None)
            try:
                return await answer.read()
            finally:
                await answer.close()
        except WattfareNetworkError as error:
            raise answers.unreachable(error) from None
        except WattfareError as error:
            if error.code != "invalid_request":
                raise
            # It is not the client's request that was refused.
            raise answers.failed("The upstream gives no list of models.") from None


class UpstreamJob:
    """One call to the upstream."""

    def __init__(
        self, upstream: Upstream, request: ChatRequest, price: Price, request_id: str
    ) -> None:
        body = dict(request.body)
        limit = request.max_tokens
        if limit is None:
            limit = body["max_tokens"] = DEFAULT_MAX_TOKENS
        if request.stream:
            options = body.get("stream_options")
            body["stream_options"] = {**(options or {}), "include_usage": True}
        self._body = msgspec.json.encode(body)
        # No tokenizer makes more tokens than bytes, and what a chat template adds to a message is
        # less than the JSON around it.
        self.bounds = price.bounds(len(self._body), 1, limit)
        if self.bounds.most > MAX_RESERVATION:
            raise invalid("This call could cost more than any budget: lower max_tokens.")
        prompt = msgspec.json.encode(request.messages)
        self.meter = Meter(price, estimate_tokens(prompt))
        self._upstream = upstream
        self._request = request
        self._request_id = request_id
        self._answer: AsyncAnswer | None = None

    async def start(self, granted: int) -> None:
        """Send it; returns when the upstream has accepted it."""
        self._answer = await self._upstream.send(
            "POST", "/chat/completions", self._body, self._request_id
        )
        kind = self._answer.headers.get("content-type", "").split(";")[0].strip().lower()
        if self._request.stream and kind == sse.CONTENT_TYPE:
            return
        if not self._request.stream and kind != sse.CONTENT_TYPE:
            return
        # An error that was noticed late may come as JSON with status 200.
        raise await self._wrong_kind()

    async def body(self) -> bytes:
        """The answer, as it came; its usage has been read."""
        return answers.read_completion(await self._read(), self.meter)

    async def blocks(self) -> AsyncGenerator[bytes]:
        """The events, as they come; our own question for the usage is taken out again."""
        assert self._answer is not None
        splitter = sse.Splitter()
        try:
            async for chunk in self._answer.chunks():
                block = self._metered(splitter.feed(chunk))
                if block:
                    yield block
                if self.meter.complete:
                    return
        except WattfareNetworkError as error:
            raise answers.unreachable(error) from None
        except sse.EventTooLargeError:
            raise answers.failed("The upstream's answer has no end.") from None
        raise answers.failed("The upstream's answer broke off.")

    async def close(self) -> None:
        """Close the connection, unless the answer has been read to its end."""
        if self._answer is not None:
            await self._answer.close()

    def _metered(self, block: bytes) -> bytes:
        passed: list[bytes] = []
        for raw in sse.split(block):
            if self._passes(raw):
                passed.append(raw)
            if self.meter.complete:
                break  # what comes after the end is not the answer
        return b"".join(passed)

    def _passes(self, raw: bytes) -> bool:
        """Meter an event. Is it for the client?"""
        for event in sse.events(raw):
            if sse.is_done(event.data):
                self.meter.complete = self.meter.generated = True
            elif answers.read_chunk(event.data, self.meter) and not self._request.include_usage:
                return False
        return True

    async def _read(self) -> bytes:
        assert self._answer is not None
        try:
            return await self._answer.read()
        except WattfareNetworkError as error:
            raise answers.unreachable(error) from None

    async def _wrong_kind(self) -> WattfareError:
        assert self._answer is not None
        if self._request.stream:
            text = await self._read()
            error = answers.error_of(_decoded(text))
            if error is not None:
                return error
        wanted = "an event stream" if self._request.stream else "JSON"
        return answers.failed(f"The upstream did not answer with {wanted}.")


def _decoded(text: bytes) -> Any:
    try:
        return answers.decode(text)
    except ValueError:
        return None
