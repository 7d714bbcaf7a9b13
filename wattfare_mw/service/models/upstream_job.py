"""One call to the upstream: bounds its cost, sends it, and meters the answer as it passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from ... import money, sse
from ...errors import (
    WattfareBudgetExceededError,
    WattfareError,
    WattfareNetworkError,
    invalid_request,
)
from ...logs import get_logger
from ...offload import LARGE_BODY, in_thread
from ...transport import AsyncHTTPResponse
from ...transport.base import BodyParts
from ..chat import prompt_bound
from ..chat.meter import Meter, estimate_tokens
from ..chat.price import MAX_RESERVATION
from ..chat.request import ChatRequest
from ..errors import upstream_failed
from ..metrics import Metrics
from ..records import Bounds
from . import (
    answer_kinds,
    generations,
    limit_refusals,
    offers,
    thinking,
    upstream_answers,
    upstream_errors,
    upstream_json,
    variants,
)
from .credential import Credential
from .offers import Offer
from .output_limits import may_be_renamed, names_for
from .provider_facts import LimitName
from .upstream_http import Refusal, UpstreamHTTP
from .upstream_models import UpstreamModels

log = get_logger("wattfare_mw.service", show_messages=False)

#: A block of events with more bytes or more lines than these is metered in a thread.
LARGE_BLOCK = 2**19
MANY_LINES = 4000
#: The maximum number of comments in a row that are passed on. Without a limit, an upstream could
#: send them forever.
MAX_COMMENTS = 3
MAX_COMMENT_BYTES = 1024
#: The maximum number of times that the service lowers its own token limit for a call: once to the
#: model's maximum, and once to the part of the context window that the prompt leaves.
MAX_LOWERINGS = 2


class JobContext(msgspec.Struct, frozen=True):
    """What all calls to an upstream have in common.

    Attributes:
        metrics: counts calls that cost more than was reserved.
        default_max_tokens: the token limit of a call that does not set one.
        max_answer_bytes: the maximum size of an answer that is not a stream, in bytes.
        reads_to_end: True to read a stream to its end, even if its client leaves.
    """

    http: UpstreamHTTP
    models: UpstreamModels
    metrics: Metrics
    default_max_tokens: int
    max_answer_bytes: int
    reads_to_end: bool


class UpstreamJob:
    """One call to the upstream.

    Args:
        context: what all calls to the upstream have in common.
        models: the models that may answer. The reservation is for the most expensive one.
        hold: the amount that the call holds if its cost has no bound, in nano-dollars; None if it
            has a bound, or if it holds the rest of the budget.
    """

    # The initial state of each job.
    lowered: int | None = None
    generation_id: str | None = None
    _answer: AsyncHTTPResponse | None = None
    _is_tight = False
    _is_unrequested = False  # True for a stream as the answer to a call without `stream`
    _body_ended = False
    _first = b""  # the bytes of a stream that were read to see what it is
    _end = b""  # the last event of a stream, after it has arrived
    _comments = 0  # in a row
    # An error of the upstream. It is raised after the events before it are passed on.
    _failure: WattfareError | None = None
    _lowerings = 0
    _spent = _done = _tallied = _answered = False
    _last = b"{}"  # the last chunk that has choices
    _sent_cost: int | None = None  # the cost that the client has received
    _beyond = 0  # the maximum number of tokens that all answers have above their limits

    def __init__(
        self,
        context: JobContext,
        request: ChatRequest,
        models: Sequence[Offer],
        request_id: str,
        hold: int | None = None,
    ) -> None:
        known, provider = context.models, context.models.provider
        messages = msgspec.json.encode(request.text)
        attached, estimate, images = request.attachments, estimate_tokens(messages), 0
        if attached is not None:
            estimate = prompt_bound.counts(estimate, attached, models[0].family).prompt
            images = len(attached.images)
        self._text = prompt_bound.bound(request.body, messages)
        self._held_for = request.held or ("model",)
        self._offers = models
        self._hold = hold
        self._page_usd = provider.page_usd
        if provider.thinks_beyond_limit:
            beyond = [thinking.beyond_limit(model, request.body) for model in request.models]
            self._beyond = request.n * max(beyond)
            if not thinking.is_limited(request.model):
                # The thinking has a limit of its own, which is in `beyond`.
                request = msgspec.structs.replace(request, thinking=0)
        self._bounds = self._bounds_with([self._text] * len(models), request)
        default = context.default_max_tokens
        if request.max_tokens is None:
            longest = offers.longest(self._bounds) if self._bounds else self._text
            # Thinking counts towards the limit, so it needs room besides the answer.
            default += request.thinking
            default = known.limits(request, models).fit(default, longest, estimate)
        self._least, most = request.limits(default)
        self._limit = most
        self.bounds = self._all_bounds(request.n)
        if self.bounds.most > MAX_RESERVATION:
            raise invalid_request("This call could cost more than any budget: lower max_tokens.")
        # This price applies until the answer names its model.
        price = offers.most_expensive(self._bounds, request.n * most)
        self.meter = Meter(price, estimate, images=images)
        self.meter.bounded = hold is None and bool(self._bounds)
        self._unanswered = len(models) > 1
        self._limit_names = names_for(
            request.model,
            request.limit_names,
            provider,
            known.learned.name(request.model),
        )
        self._asks_usage = request.stream and known.learned.gives_usage(request.model)
        # A held call may cost more than its tokens, for example for a search. This cost arrives at
        # the end of the stream, or is in the provider's record.
        cost_at_end = hold is not None and not provider.generation_record
        self.detaches = not request.stream or context.reads_to_end or cost_at_end
        self._context = context
        self._credential = context.http.operator
        self._request = request
        self._names = request.models
        self._request_id = request_id
        if request.stream:
            self._splitter = sse.Splitter()
            self._finishes = upstream_answers.Finishes()
        self._unnamed = provider.generation_record  # True if the generation's id is not known yet

    def _bounds_with(self, texts: Sequence[int], request: ChatRequest) -> list[offers.Bound]:
        """The bound for each model. ``texts``: the maximum number of text tokens in its prompt."""
        return offers.bounds(self._offers, texts, request.attachments, self._page_usd, self._beyond)

    def _all_bounds(self, answers: int) -> Bounds:
        if self._bounds:
            bounds = offers.between(self._bounds, answers * self._least, answers * self._limit)
        elif self._hold is None:
            return Bounds(1, MAX_RESERVATION, requires_cap=True, because=("model",))
        else:
            bounds = Bounds(1, 1)
        if self._hold is None:
            return bounds
        return bounds.holding(self._hold, self._held_for)

    async def tighten(self) -> Bounds | None:
        """Compute closer bounds: count the prompt with the model's own tokenizer. Returns None if
        no tokenizer is installed, or if the call has no bound. The prompt is counted only once,
        because a call that waits for its budget calls this method many times."""
        if self._is_tight:
            return self.bounds
        request = self._request
        texts = await in_thread(offers.counted, self._offers, request, self._text)
        if not self._bounds or texts is None:
            return None
        self._is_tight = True
        self._bounds = self._bounds_with(texts, request)
        self.bounds = self._all_bounds(request.n)
        return self.bounds

    async def start(self, granted: int, credential: Credential | None = None) -> None:
        """Send the call, with the limit that the reservation pays for. Returns when the upstream
        has accepted it."""
        request = self._request
        if credential is not None:
            self._credential = credential
        self.meter.granted = granted
        if self._bounds and granted < self.bounds.most:
            limit = offers.limit(self._bounds, granted, request.n, self._limit)
            if limit < self._limit:
                self.lowered = self._limit = limit
        self._answer = await self._send(request)
        # The body may be large, and the answer may take minutes.
        self._request = msgspec.structs.replace(
            request, body={}, messages=[], text=[], attachments=None
        )
        headers = self._answer.headers.common
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            # The request asked for an uncompressed answer. A compressed one cannot be metered.
            raise upstream_failed(
                "The upstream compressed its answer, although the request refused that."
            )
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if request.stream and kind == sse.CONTENT_TYPE:
            if self._unnamed:
                self._is_named(generations.id_in(self._answer.headers))
            return
        if request.stream:
            self._first = await self._unlabeled_stream()
        self._is_unrequested = not request.stream and kind == sse.CONTENT_TYPE

    async def _send(self, request: ChatRequest) -> AsyncHTTPResponse:
        """Send the call, and again if the upstream refuses the limit or the field for the usage. A
        refusal costs nothing, and each try is within the same reservation."""
        model, models = request.model, self._context.models
        name: LimitName | None = None
        most: int | None = None
        gave_usage = self._asks_usage
        while True:
            fields = self._body()
            if request.large:
                body = await in_thread(msgspec.json.encode, fields)
            else:
                body = msgspec.json.encode(fields)
            self.meter.sent = True
            answer = await self._context.http.exchange(
                "POST",
                "/chat/completions",
                body,
                self._request_id,
                credential=self._credential,
                stream=request.stream,
            )
            if not isinstance(answer, Refusal):
                learned = models.learned
                if name is not None:
                    learned.note_name(model, name)
                if most is not None:
                    learned.note_most(model, most, stream=request.stream)
                if self._asks_usage != gave_usage:
                    learned.note_without_usage(model)
                return answer
            said = limit_refusals.read(
                answer.status,
                answer.text,
                names=self._limit_names,
                limit=self._limit,
                model=model,
            )
            if said.without_usage and self._asks_usage:
                self._asks_usage = False  # the usage is then counted as it passes
            elif said.most is not None and self._may_lower_to(said.most):
                self._lowerings += 1
                most = None if said.for_this_prompt else said.most
                self._limit = said.most
                if self.lowered is not None:
                    self.lowered = said.most
            elif said.name and name is None and may_be_renamed(model, models.provider):
                name = said.name
                self._limit_names = (name,)
            else:
                raise answer.error

    def _may_lower_to(self, most: int) -> bool:
        """True if the limit may be lowered to this one. The client's own limit is never lowered."""
        request = self._request
        return (
            request.max_tokens is None
            and self._lowerings < MAX_LOWERINGS
            and request.thinking < most < self._limit
        )

    async def body(self) -> bytes:
        """Read and meter the whole answer."""
        assert self._answer is not None
        if self._is_unrequested:
            answer = await self._unrequested_stream()
        else:
            answer = await self._read(self._context.max_answer_bytes)
        if answer_kinds.is_framed(answer):
            answer = await in_thread(answer_kinds.as_whole, answer)
        if self._unanswered:
            self._find_model(answer)
        reading = (answer, self.meter, self._credential, self._answer.headers)
        if len(answer) <= LARGE_BODY:
            body = upstream_answers.read_completion(*reading)
        else:
            body = await in_thread(upstream_answers.read_completion, *reading)
        self._tally()
        self._check_cost_is_known()
        return body

    async def read_events(self) -> bytes:
        """Read and meter the next events. The usage event is left out if only the service asked for
        it."""
        assert self._answer is not None
        while not self._spent:
            if self._failure is not None:
                raise self._failure
            if self._end:
                self.meter.complete = True
                self._check_cost_is_known()
                return self._end
            try:
                chunk, self._first = self._first, b""
                if not self._body_ended and (chunk := chunk or await self._answer.read_some()):
                    block = self._splitter.feed(chunk)
                    # Some upstreams leave the connection open after the end.
                    if block is not chunk and self._splitter.ends:
                        block += self._splitter.finish()
                else:
                    block = self._last_events()
                if _is_large(block):
                    events = await in_thread(self._metered, block)
                else:
                    events = self._metered(block)
            except WattfareNetworkError as error:
                raise upstream_errors.unreachable(error) from error.__cause__
            except sse.EventTooLargeError:
                raise upstream_failed("The upstream's answer did not end.") from None
            if self._done:
                # Events before the end need not wait for the settlement.
                start = sse.last_event(events)
                self._end, events = self._final_usage() + events[start:], events[:start]
            if events:
                return events
            await asyncio.sleep(0)  # an upstream that floods us must not block other tasks
        raise WattfareBudgetExceededError(
            "The model exceeded its limit, and this call's reservation is spent."
        )

    def _last_events(self) -> bytes:
        """The events that are still buffered when the upstream's body has ended, and ``[DONE]`` if
        all choices have ended."""
        block = self._splitter.finish()
        for event in sse.events(block):
            self._finishes.record(event.data)
        if not self._body_ended and self._finishes.all_of(self._request.n):
            block += sse.write(sse.DONE)
        elif not block:
            raise upstream_failed("The upstream's answer broke off.")
        self._body_ended = True
        return block

    async def close(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        if self._answer is not None:
            await self._answer.close()
        self._tally()

    def _tally(self) -> None:
        """Count the cost above the reservation. It is counted once, and before the client gets the
        end of the answer."""
        if self._tallied:
            return
        self._tallied = True
        metrics, overrun = self._context.metrics, self.meter.overrun
        if self._spent:
            metrics.spent_streams.inc()
        if overrun:
            metrics.overrun(overrun)
            log.warning(
                "the upstream claims $%s more than was reserved: model=%r request_id=%s",
                money.usd(overrun),
                self._request.model,
                self._request_id,
            )

    def _check_cost_is_known(self) -> None:
        """Remember the model if the complete answer has no cost."""
        if not self.meter.is_known:
            self._context.models.found_no_cost(self._request.model)

    def _body(self) -> dict[str, Any]:
        request = self._request
        body = request.limited(self._limit, *self._limit_names)
        body.pop("usage", None)  # OpenRouter's way to ask for the usage. OpenAI refuses it.
        if self._asks_usage:
            options = body.get("stream_options")
            body["stream_options"] = {**(options or {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
        routed = True in [offer.variant.routed for offer in self._offers]
        if (body.get("provider") or routed) and self._bounds:
            # A gateway must not choose a provider that costs more than was reserved.
            provider: dict[str, Any] = body.get("provider") or {}
            price = offers.max_price(self._bounds, provider.get("max_price"))
            body["provider"] = {**provider, "max_price": price}
        return body

    def _metered(self, block: bytes) -> bytes:
        """Meter these events, and return those for the client."""
        data = sse.lone_data(block)
        if data is not None:
            event = self._passed(data)
            passed = block if event is data else b"" if event is None else sse.write(event)
        elif block.find(b"data") < 0:
            passed = self._comment(block)  # a block of many lines counts as one comment
        elif (lines := sse.data_lines(block)) is None:
            passed = self._passed_events(block)
        else:
            kept = self._kept(lines)
            # Usually, the client gets all events, so the block is passed on unchanged.
            passed = block if kept is lines else b"".join(map(sse.write, kept))
        if self._done or self._spent:
            self._tally()
        return self._credential.redactor.answer(passed)

    def _kept(self, lines: list[bytes]) -> list[bytes]:
        """Meter these events. Returns those for the client: the same list if nothing changes."""
        kept: list[bytes] = []
        same = True
        for data in lines:
            try:
                event = self._passed(data)
            except WattfareError as failure:
                self._failure = failure
                break
            same = same and event is data
            if event is not None:
                kept.append(event)
            if self._done or self._spent:
                break  # data after the end is not part of the answer
        return lines if same and len(kept) == len(lines) else kept

    def _passed_events(self, block: bytes) -> bytes:
        passed: list[bytes] = []
        for raw in sse.split(block):
            events = list(sse.events(raw))
            try:
                if not events:
                    passed.append(self._comment(raw))
                    continue
                lines = [line for event in events for line in self._lines(event)]
            except WattfareError as failure:
                self._failure = failure
                break
            kept = self._kept(lines)
            if kept is lines and len(lines) == len(events):
                passed.append(raw)
            else:
                passed += map(sse.write, kept)
            if self._done or self._spent or self._failure is not None:
                break
        return b"".join(passed)

    def _lines(self, event: sse.Event) -> list[bytes]:
        """The data to meter. It is empty for a ping that is not JSON, because clients could not
        read it.

        Raises:
            WattfareError: ``upstream``; the event is an error.
        """
        if event.type == "error":
            raise upstream_errors.error_event(event.data, self._credential)
        if sse.is_ping(event) and _decoded(event.data) is None:
            return []
        return _apart(event.data)

    def _comment(self, raw: bytes) -> bytes:
        """The part of a block without events that the client gets: the block, or nothing.

        Raises:
            WattfareError: ``upstream``; it is an error.
        """
        error = upstream_errors.error_without_data(raw, self._credential)
        if error is not None:
            raise error
        self._comments += 1
        return raw if self._comments <= MAX_COMMENTS and len(raw) <= MAX_COMMENT_BYTES else b""

    def _passed(self, data: bytes) -> bytes | None:
        """Meter an event. Returns the event for the client: the same object if nothing changes, or
        None if the client does not get it."""
        self._comments = 0
        if not data.startswith(b"{") and sse.is_done(data):
            if not self._answered:
                self.meter.empty()
                raise upstream_failed("The upstream did not answer with a completion.")
            self._done = self.meter.generated = True
            return data
        if self._unnamed:
            self._is_named(generations.id_of(data))
        if self._unanswered:
            self._find_model(data)
        read = upstream_answers.read_chunk(data, self.meter, self._credential)
        if read is upstream_answers.TEXT and not self.meter.spent:  # a shortcut for most chunks
            self._answered = True
            self._last = data
            return data
        if read.may_end:
            self._finishes.record(data)
        self._answered = self._answered or read.choices
        if read.generated and self.meter.spent:
            self._spent = True
            return None
        if not read.passes:
            return None
        if read.choices:
            self._last = data
        if not read.usage:
            return data
        if not self._request.include_usage:
            if not read.choices:
                return None  # the client did not ask for the usage
            if data.find(b'"cost"') < 0:
                return data
        self._sent_cost = self.meter.billed
        return upstream_answers.with_cost(data, self.meter)

    def _is_named(self, generation_id: str | None) -> None:
        self.generation_id = generation_id
        self._unnamed = generation_id is None

    def _find_model(self, data: bytes) -> None:
        """Bill by the model that this answer or chunk names."""
        try:
            name = _decode_model(data).model
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if not name:
            return
        self._unanswered = False
        place = variants.answered(name, self._names)
        price = None if place is None else self._offers[place].price
        if price is not None and self._bounds:
            self.meter.priced_at(price)

    def _final_usage(self) -> bytes:
        """The event with the usage, if the client has asked for it and has not received it yet."""
        if not self._request.include_usage or self._sent_cost == self.meter.billed:
            return b""
        return sse.write(upstream_answers.usage_chunk(self._last, self.meter))

    async def _read(self, most: int) -> bytes:
        assert self._answer is not None
        try:
            return await self._answer.read(most)
        except WattfareNetworkError as error:
            raise upstream_errors.unreachable(error) from error.__cause__

    async def _unrequested_stream(self) -> bytes:
        """A stream as the answer to a call without ``stream``, up to its end or an error."""
        assert self._answer is not None
        body, splitter = BodyParts(self._context.max_answer_bytes), sse.Splitter()
        try:
            while chunk := await self._answer.read_some():
                body.add(chunk)
                block = splitter.feed(chunk)
                if _is_large(block):
                    ended = await in_thread(answer_kinds.has_end, block)
                else:
                    ended = answer_kinds.has_end(block)
                if ended or splitter.ends:
                    break
        except WattfareNetworkError as error:
            raise upstream_errors.unreachable(error) from error.__cause__
        except sse.EventTooLargeError:
            raise upstream_failed("The upstream's answer did not end.") from None
        return body.join()

    async def _unlabeled_stream(self) -> bytes:
        """The first bytes of a stream whose content type is not that of a stream. If the answer is
        whole, it is converted to a stream.

        Raises:
            WattfareError: ``upstream``; the answer is an error, or neither of them.
        """
        assert self._answer is not None
        try:
            first = await self._answer.read_some()
        except WattfareNetworkError as error:
            raise upstream_errors.unreachable(error) from error.__cause__
        if answer_kinds.is_stream(first):
            return first
        body = first + await self._read(self._context.max_answer_bytes)
        if answer_kinds.is_stream(body):
            return body
        # An error that the upstream noticed late may be JSON with status 200.
        stream = await in_thread(answer_kinds.as_stream, body)
        if stream is None:
            error = upstream_errors.error_without_choices(_decoded(body), self._credential)
            raise error or upstream_failed("The upstream did not answer with an event stream.")
        return stream


def _is_large(block: bytes) -> bool:
    size = len(block)
    if size <= 2 * MANY_LINES:
        return False
    # Count lines, because even a small event takes time.
    return size > LARGE_BLOCK or block.count(b"\n") + block.count(b"\r") > MANY_LINES


def _apart(data: bytes) -> list[bytes]:
    """Split the data of an event if each of its lines is an event. Some upstreams leave out the
    empty line between two events."""
    lines = data.split(b"\n")
    if len(lines) == 1 or _decoded(data) is not None:
        return [data]
    are_events = all(sse.is_done(line) or _decoded(line) is not None for line in lines)
    return lines if are_events else [data]


class _Answered(msgspec.Struct):
    model: str | None = None


_decode_model = msgspec.json.Decoder(_Answered).decode


def _decoded(text: bytes) -> Any:
    try:
        return upstream_json.decode(text)
    except ValueError:
        return None
