"""Readers that need no I/O. Each target makes one input from a random generator, reads it, and
raises any unexpected error."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from decimal import Decimal
from random import Random
from typing import Any

import msgspec

from fuzz import mutations
from fuzz.samples import ANSWERS, CHUNKS, PRICE_LISTS, REQUESTS
from wattfare_mw import sse
from wattfare_mw.completions import read_completion
from wattfare_mw.errors import WattfareAuthError, WattfareError
from wattfare_mw.headers import Headers
from wattfare_mw.json_limits import MAX_DEPTH, check_structure
from wattfare_mw.service.api import parameters
from wattfare_mw.service.chat import prompt_bound
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.chat.allowed_fields import REQUEST
from wattfare_mw.service.chat.json_length import json_length
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.chat.price import Price
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.models import model_lists, upstream_answers, upstream_errors
from wattfare_mw.service.models.credential import Credential
from wattfare_mw.service.models.price_lists import read_prices
from wattfare_mw.service.tokens import Session, Signer
from wattfare_mw.types import encode

KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"
_CREDENTIAL = Credential(KEY)
_PRICE = Price.flat(Decimal("0.000001"), Decimal("0.000002"))
# Its clock stands still, so that the token does not expire in a long run.
_SIGNER = Signer(b"k" * 32, lambda: 1_800_000_000)
_TOKEN = _SIGNER.mint(Session("app", "u1", None, 0)).token.encode()


def pieces(data: bytes, random: Random) -> list[bytes]:
    """The data in pieces, as a network may deliver it."""
    found: list[bytes] = []
    start = 0
    most = random.choice((1, 3, 20, 200, 10_000))
    while start < len(data):
        end = start + random.randint(1, most)
        found.append(data[start:end])
        start = end
    return found


# -- event streams

_STREAMS = [
    b"".join(sse.write(json.dumps(chunk).encode()) for chunk in CHUNKS) + b"data: [DONE]\n\n",
    b": a comment\n\nevent: error\ndata: {}\nid: 1\nretry: 5\n\n",
    b"data: a\r\ndata: b\r\n\r\ndata\r\n\r\n",
    b"data: a\rdata: b\r\r\n\ndata:c\r\n\n",
    b'data: {"error": {"code": "upstream", "message": "x"}}\n\n',
    b"",
]


def event_streams(random: Random) -> None:
    """Checks that the splitter finds the same events however the stream is cut."""
    data = mutations.bytes_of(_STREAMS, random)
    splitter = sse.Splitter()
    out = b"".join([splitter.feed(piece) for piece in pieces(data, random)])
    assert out + splitter.rest == data
    found = list(sse.events(out))
    # a byte order mark at the start of a later line is left out, too
    if b"\xef\xbb\xbf" not in data:
        assert [event.data for event in found] == _events(data)
    if not out:
        return
    blocks = list(sse.split(out))
    whole = b"".join(blocks)
    assert out.startswith(whole)
    assert not out[len(whole) :].strip(b"\r\n")
    if blocks:
        assert sse.last_event(whole) == len(whole) - len(blocks[-1])
    for block in blocks:
        lone = sse.lone_data(block)
        assert lone is None or [lone] == [event.data for event in sse.events(block)]
        sse.is_comment(block)
    lines = sse.data_lines(out)
    assert lines is None or lines == [event.data for event in found]
    for start, end in sse.holding(out, b'"usage"', b"[DONE]"):
        assert 0 <= start < end <= len(out)
    sse.may_hold_comments(out)
    for event in found:
        sse.error_in(event.data)
        sse.is_done(event.data)


def _events(data: bytes) -> list[bytes]:
    """The data of each event, by the standard's own algorithm."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: list[bytes] = []
    buffer: list[bytes] = []
    for line in lines[:-1]:
        if not line:
            if buffer:
                events.append(b"\n".join(buffer))
            buffer = []
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            buffer.append(value.removeprefix(b" "))
    return events


# -- JSON

_NAMES = (*REQUEST, "role", "content", "type", "text", "function", "name", "arguments", "x")


def json_limits(random: Random) -> None:
    """Checks that accepted input is within the limits and refused input is not."""
    data = mutations.json_of(REQUESTS, _NAMES, random)
    most = random.choice((1, 5, 50, 100_000))
    try:
        check_structure(data, most)
        refused = False
    except WattfareError as error:
        assert error.code == "invalid_request"
        refused = True
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    depth, elements = _size(data)
    assert refused == (depth > MAX_DEPTH or elements > most), (depth, elements, most, type(value))


def _size(data: bytes) -> tuple[int, int]:
    """The depth of valid JSON, and its number of brackets and commas."""
    depth = deepest = elements = 0
    in_string = escaped = False
    for byte in data:
        char = chr(byte)
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            elements += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
        elif char == ",":
            elements += 1
    return deepest, elements


# -- inference requests


def requests(random: Random) -> None:
    """Checks that a request is read and bounded, or refused."""
    data = mutations.json_of(REQUESTS, _NAMES, random)
    try:
        request = chat_request.read(data, never_shorten=random.random() < 0.2)
        least, most = request.limits(chat_request.DEFAULT_MAX_TOKENS)
    except WattfareError as error:
        assert error.code == "invalid_request", error
        assert error.http_status == 400
        error.to_json()
        return
    assert 0 < least <= most
    for message in request.messages:
        try:
            chat_request.text_of(message)
        except WattfareError as error:
            assert error.code == "invalid_request", error
    encoded = encode(request.limited(most, "max_tokens"))
    bound = prompt_bound.bound(request.body)
    texts = [chat_request.text_of(one) for one in request.messages if _is_plain(one)]
    assert bound >= sum(len(text.encode()) for text in texts)
    assert len(encoded) > 0
    assert json_length(request.body, 4) == len(json.dumps(request.body, indent=4))
    assert json_length(request.body) == len(json.dumps(request.body))


def _is_plain(message: dict[str, Any]) -> bool:
    return message.get("content") is None or isinstance(message["content"], str)


# -- price lists

_PRICE_NAMES = (
    *("id", "pricing", "prompt", "completion", "request", "overrides", "input_cache_write"),
    *("input_cache_read", "internal_reasoning", "data", "image", "web_search", "x"),
)


def price_lists(random: Random) -> None:
    """Checks that each price that is read can be computed with."""
    data = mutations.json_of(PRICE_LISTS, _PRICE_NAMES, random)
    try:
        data = model_lists.normalized(data)
        # Python refuses to make an integer of more than 4,300 digits.
        assert isinstance(json.loads(data, parse_int=float)["data"], list)
        prices = read_prices(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # `catalog` reports that it is not a list
    for price in prices.values():
        if not isinstance(price, Price):
            continue
        cost = price.cost(TokenCounts(prompt=1000, completion=1000))
        assert 0 <= cost <= price.bound(1000, 1000)
        assert price.cost_of_more(1, 1000) >= 0
        tokens = price.tokens_for(cost, 1000)
        assert tokens is None or tokens >= 1000
        assert 0 <= price.pays_for(10**9, 10, 3, 100) <= 100


# -- answers of an upstream

_ANSWER_NAMES = (
    *("choices", "delta", "message", "content", "usage", "error", "code", "type", "status"),
    *("cost", "prompt_tokens", "completion_tokens", "metadata", "reasons", "tool_calls", "x"),
    *("function", "arguments", "reasoning", "refusal", "function_call", "role"),
)


def answers(random: Random) -> None:
    """Checks that an answer is metered, or is an upstream failure."""
    data = mutations.json_of(ANSWERS, _ANSWER_NAMES, random)
    if random.random() < 0.1:
        data = data.replace(b'"x"', encode(KEY))
    meter = _meter(random)
    try:
        answer = upstream_answers.read_completion(data, meter, _CREDENTIAL)
    except WattfareError as error:
        _check_failure(error)
    else:
        json.loads(answer, parse_int=float)
        assert KEY.encode() not in answer
        assert meter.complete
    _check_meter(meter)
    with suppress(WattfareError):
        read_completion(200, data)
    error = upstream_errors.failure(
        random.choice((400, 401, 402, 403, 404, 418, 429, 500, 502, 599)),
        data,
        {"retry-after": random.choice(("", "1", "nan", "-1", "1e9", "x"))},
        _CREDENTIAL,
    )
    _check_failure(error)


def chunks(random: Random) -> None:
    """The same for the chunks of an answer."""
    meter = _meter(random)
    for _ in range(random.randint(1, 4)):
        data = mutations.json_of(CHUNKS, _ANSWER_NAMES, random)
        try:
            upstream_answers.read_chunk(data, meter, _CREDENTIAL)
        except WattfareError as error:
            _check_failure(error)
        _check_meter(meter)
        _check_failure(upstream_errors.error_event(data, _CREDENTIAL))
        for block in (data, b": x\n\nerror: " + data + b"\n\n"):
            try:
                found = upstream_errors.error_without_data(block, _CREDENTIAL)
            except WattfareError as error:
                found = error
            if found is not None:
                _check_failure(found)


def _meter(random: Random) -> Meter:
    meter = Meter(random.choice((None, _PRICE)), 10)
    meter.sent = True
    meter.granted = 10**6
    return meter


def _check_failure(error: WattfareError) -> None:
    assert error.code in ("upstream", "rate_limited", "invalid_request"), error
    assert error.http_status != 500
    assert KEY not in error.message
    assert error.retry_after is None or math.isfinite(error.retry_after)
    error.to_json()


def _check_meter(meter: Meter) -> None:
    outcome = meter.outcome("complete")
    assert outcome.cost >= 0
    assert outcome.prompt_tokens >= 0
    assert outcome.completion_tokens >= 0
    assert meter.overrun >= 0
    assert meter.spent in (True, False)


# -- headers, the query and tokens

_USERS = [b"u1", b"%C3%A9", b"a%20b", b"user@example.com"]
_QUERIES = [b"appUserId=u1", b"appUserId=%C3%A9&x=1", b"appUserId=a+b;c", b"a=&appUserId="]


def credentials(random: Random) -> None:
    """Checks that headers and a query give valid values, or that the request is refused."""
    user = mutations.bytes_of(_USERS, random)
    raw = [(b"x-wattfare-user", user)]
    if random.random() < 0.1:
        raw.append(random.choice(((b"x-wattfare-grant", b"g"), raw[0])))
    raw.append((b"idempotency-key", mutations.bytes_of([b"key", b"k" * 255], random)))
    raw.append((b"x-wattfare-on-low-budget", mutations.bytes_of([b"lower", b"refuse"], random)))
    headers = Headers.of_scope(raw)
    query = mutations.bytes_of(_QUERIES, random)
    for read in (
        lambda: parameters.payer_in_headers(headers),
        lambda: parameters.idempotency_key(headers, user),
        lambda: parameters.refuses_low_budget(headers),
        lambda: parameters.user_in_query(query),
    ):
        try:
            read()
        except WattfareError as error:
            assert (error.code, error.http_status) == ("invalid_request", 400)
    token = mutations.bytes_of([_TOKEN], random)
    try:
        _SIGNER.read(token.decode("latin-1"))
    except WattfareAuthError:
        assert token != _TOKEN
