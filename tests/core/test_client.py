"""The clients, on each kind of HTTP client: what they return and raise, when they retry, and what
they never reveal."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import aiohttp
import httpx
import httpx2
import pytest
from rich.traceback import Traceback
from support.clients import (
    KINDS,
    NEEDLE,
    ONE_OF_EACH,
    SECRET,
    Drive,
    DrivenStream,
    Driver,
    Kind,
    driving,
    is_held_by_its_traceback,
    post,
)
from support.patience import PATIENCE
from support.ports import refused_port
from support.wire import (
    END,
    SESSION,
    STATUS,
    STREAM,
    Wire,
    answer,
    close,
    completion,
    delta,
    error_answer,
    event,
    hang,
    head,
    json_answer,
    piece,
    reset,
    streamed,
)

from wattfare_mw import (
    AsyncWattfare,
    ConnectionStatus,
    CreatedSession,
    Limits,
    Request,
    RequestLimit,
    SessionRequest,
    Timeout,
    TokenUsage,
    ToolCall,
    Usage,
    Wattfare,
    WattfareAuthError,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    calls,
)
from wattfare_mw.client import client_for

#: Their errors are also rendered in a terminal. rich needs a lot of time for this.
SCREENED = [ONE_OF_EACH[0], ONE_OF_EACH[3]]
#: For tests that do not depend on the HTTP library.
FEWER = pytest.mark.parametrize(
    "kind", [ONE_OF_EACH[0], ONE_OF_EACH[3], ONE_OF_EACH[4]], ids=lambda kind: kind.id
)
BOTH = pytest.mark.parametrize("cls", [Wattfare, AsyncWattfare])


# -- construction


@BOTH
@pytest.mark.parametrize("key", [None, "", "pk_test_1", "SK_test_1", b"sk_test_1", 7, "x sk_test"])
def test_invalid_secret_key_raises_at_once(cls: Any, key: Any) -> None:
    with pytest.raises(WattfareAuthError, match="sk_") as caught:
        cls(key)
    assert (caught.value.code, caught.value.status) == ("auth", 401)


@BOTH
@pytest.mark.parametrize("key", ["sk_test_a b", "sk_test_a\nb", "sk_test_ä", "sk_test_\x00"])
def test_key_that_cannot_be_sent_in_a_header_raises_at_once(cls: Any, key: str) -> None:
    with pytest.raises(WattfareAuthError) as caught:
        cls(key)
    assert key not in str(caught.value)


@BOTH
def test_key_and_base_url_come_from_the_environment(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTFARE_SECRET_KEY", SECRET)
    assert cls().base_url == "https://wattfare.com"
    monkeypatch.setenv("WATTFARE_BASE_URL", "http://127.0.0.1:8787/")
    client = cls()
    assert client.base_url == "http://127.0.0.1:8787"
    assert client._runner.caller.secret_key == SECRET
    assert cls("sk_test_other", base_url="https://other.test").base_url == "https://other.test"


@BOTH
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://w.test", "https://w.test"),
        ("https://w.test///", "https://w.test"),
        ("https://w.test/api/v1", "https://w.test"),
        ("https://w.test/api/v1/", "https://w.test"),
        ("http://w.test:8080/below/", "http://w.test:8080/below"),
    ],
)
def test_each_spelling_of_the_base_url_is_accepted(cls: Any, given: str, kept: str) -> None:
    assert cls(SECRET, base_url=given).base_url == kept


@BOTH
@pytest.mark.parametrize(
    "url",
    [
        "",
        "w.test",
        "ftp://w.test",
        "https://",
        "https://w.test?x=1",
        "https://w.test#x",
        "https://someone:pass@w.test",
        "https://w.test/ä",
        "https://w.test/a b",
        "https://w.test:port",
        "https://w.test:99999",
        "https://[::1",
    ],
)
def test_invalid_base_url_raises_at_once(cls: Any, url: str) -> None:
    with pytest.raises(ValueError, match=r"base_url \(or WATTFARE_BASE_URL\) must"):
        cls(SECRET, base_url=url)


@BOTH
def test_timeouts_are_separate(cls: Any) -> None:
    assert cls(SECRET)._runner.caller.timeout == Timeout(connect=5.0, read=30.0, inference=600.0)
    assert cls(SECRET, timeout=3)._runner.caller.timeout == Timeout(3, 3, 600.0)
    caller = cls(SECRET, timeout=Timeout(1, 2, None))._runner.caller
    status = caller.request(calls.status("u"))
    assert (status.connect_timeout, status.read_timeout) == (1, 2)
    payer = calls.payer_of("u")
    chat = caller.request(calls.chat_completion("m", "Hi", None, {}, stream=False)(payer))
    assert (chat.connect_timeout, chat.read_timeout) == (1, None)


def test_sync_and_async_clients_have_the_same_signature() -> None:
    assert inspect.signature(Wattfare) == inspect.signature(AsyncWattfare)
    for name in ("user", "grant", "create_session", "session_handler"):
        ours, theirs = (
            inspect.signature(getattr(cls, name)).parameters for cls in (Wattfare, AsyncWattfare)
        )
        assert ours == theirs, name


def test_sibling_has_the_other_kind_and_the_same_settings() -> None:
    client = Wattfare(SECRET, base_url="https://w.test", timeout=3, max_retries=7)
    assert client_for(Wattfare, client) == (client, False)
    sibling, ours = client_for(AsyncWattfare, client)
    assert isinstance(sibling, AsyncWattfare)
    assert ours
    for name in ("secret_key", "base_url", "timeout", "max_retries"):
        assert getattr(sibling._runner.caller, name) == getattr(client._runner.caller, name)
    with pytest.raises(TypeError, match="not both"):
        client_for(Wattfare, client, SECRET)
    with pytest.raises(TypeError, match="Wattfare"):
        client_for(Wattfare, object())  # type: ignore[arg-type]


# -- what is returned


def test_status_is_returned(driver: Driver, wire: Wire) -> None:
    wire.then(json_answer({**STATUS, "added later": [1]}))
    assert driver.status() == ConnectionStatus(
        connected=True,
        limits=Limits(Decimal(20)),  # type: ignore[arg-type]
        usage=Usage(Decimal("0.25")),  # type: ignore[arg-type]
        remaining_usd=Decimal("19.75"),  # type: ignore[arg-type]
    )


@FEWER
def test_status_without_a_connection_is_not_an_error(driver: Driver, wire: Wire) -> None:
    none = {"connected": False, "limits": None, "usage": {"monthlyUsd": 0}, "remainingUsd": 0}
    wire.then(json_answer(none))
    status = driver.status()
    assert not status.connected
    assert status.limits is None
    assert status.remaining_usd == 0


@FEWER
def test_status_without_a_cap(driver: Driver, wire: Wire) -> None:
    free = {**STATUS, "limits": {"monthlyUsd": None}, "remainingUsd": None}
    wire.then(json_answer(free))
    status = driver.status()
    assert status.limits == Limits(None)
    assert status.remaining_usd is None


@FEWER
@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        (None, None),
        (20, b'{"monthlyUsd":20}'),
        (0, b'{"monthlyUsd":0}'),
        (0.1, b'{"monthlyUsd":0.1}'),
        (Decimal("0.30"), b'{"monthlyUsd":0.3}'),
        (Decimal("1e-10"), b'{"monthlyUsd":0}'),
        (RequestLimit(12.5), b'{"monthlyUsd":12.5}'),
        (RequestLimit(), b'{"monthlyUsd":null}'),
        (SessionRequest(RequestLimit(7)), b'{"monthlyUsd":7}'),
        (SessionRequest(7), b'{"monthlyUsd":7}'),  # type: ignore[arg-type]
        (SessionRequest(), None),
    ],
)
def test_session_is_returned(driver: Driver, wire: Wire, limit: Any, sent: bytes | None) -> None:
    wire.then(json_answer(SESSION))
    assert driver.create_session("u1", limit) == CreatedSession("a.jwt.token", 1_800_000_000)
    limits = b"" if sent is None else b',"requestLimit":' + sent
    assert wire.last.body == b'{"appUserId":"u1"' + limits + b"}"


@FEWER
@pytest.mark.parametrize("limit", [-1, float("nan"), "20", True, 1e10, Decimal("1e999999999"), {}])
def test_invalid_limit_is_refused_before_the_request(
    driver: Driver, wire: Wire, limit: Any
) -> None:
    for given in (limit, SessionRequest(limit)):
        with pytest.raises(WattfareError) as caught:
            driver.create_session("u1", given)
        assert (caught.value.code, caught.value.status) == ("invalid_request", 400)
    assert not wire.connections


@FEWER
@pytest.mark.parametrize(
    "user", ["", "x" * 257, "\ud800", 7.0, True, pytest.param(10**5000, id="huge"), None, b"u1"]
)
def test_invalid_user_id_is_refused_before_the_request(
    driver: Driver, wire: Wire, user: Any
) -> None:
    for call in (driver.status, driver.create_session, driver.client.user):
        with pytest.raises(WattfareError) as caught:
            call(user)
        assert caught.value.code == "invalid_request"
    assert not wire.connections


@FEWER
@pytest.mark.parametrize("user", [7, UUID(int=7)])
def test_int_and_uuid_are_user_ids(driver: Driver, wire: Wire, user: Any) -> None:
    assert driver.client.user(user).id == str(user)
    wire.then(json_answer(SESSION))
    driver.create_session(user)
    assert json.loads(wire.last.body) == {"appUserId": str(user)}


@FEWER
@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä", None, 7])
def test_invalid_grant_token_is_refused_before_the_request(
    driver: Driver, wire: Wire, token: Any
) -> None:
    with pytest.raises(WattfareGrantError):
        driver.client.grant(token)
    assert not wire.connections


@FEWER
def test_grant_is_the_only_payer(driver: Driver, wire: Wire) -> None:
    wire.then(json_answer(completion()))
    model = driver.client.grant("gr_a.b~%c").model("test/model")
    assert driver.run(lambda: model.generate("Hi")).text == "Hello."
    assert wire.last.headers["x-wattfare-grant"] == "gr_a.b~%c"
    assert "x-wattfare-user" not in wire.last.headers


def test_errors_hide_a_grant_token(driver: Driver) -> None:
    token = [f"gt_{NEEDLE}\n"]  # not in a variable of this frame
    with pytest.raises(WattfareGrantError) as caught:
        driver.client.grant(token.pop())
    assert NEEDLE not in everything_shown(caught.value)


@FEWER
@pytest.mark.parametrize("pays", ["user", "grant"])
def test_on_low_budget_option_is_sent(driver: Driver, wire: Wire, pays: str) -> None:
    name = "x-wattfare-on-low-budget"
    payer = getattr(driver.client, pays)("u1")
    for options, sent in (({}, None), ({"on_low_budget": "refuse"}, "refuse")):
        model = payer.model("test/model", **options)
        wire.then(json_answer(completion()))
        driver.run(lambda model=model: model.generate("Hi"))
        assert wire.last.headers.get(name) == sent
    wire.then(streamed(delta("Hi", finish="stop")))
    with DrivenStream(driver, driver.run(lambda: model.stream("Hi"))) as stream:
        list(stream)
    assert wire.last.headers[name] == "refuse"
    for bad in ("Refuse", "", None, ["lower"]):
        with pytest.raises(ValueError, match="'lower' or 'refuse'"):
            payer.model("test/model", on_low_budget=bad)


def test_whole_answer_is_returned(driver: Driver, wire: Wire) -> None:
    wire.then(json_answer(completion(provider="Fake")))
    whole = driver.generate("Hi", temperature=0.5, response_format={"type": "json_object"})
    assert wire.last.json["temperature"] == 0.5
    assert wire.last.json["response_format"] == {"type": "json_object"}
    assert whole.text == "Hello."
    assert whole.finish_reason == "stop"
    assert whole.model == "test/model"
    assert whole.usage == TokenUsage(3, 1, 4)
    assert whole.cost_usd == Decimal("0.000007")
    assert whole.tool_calls == ()
    assert whole.raw["provider"] == "Fake"


@FEWER
def test_whole_answer_with_tool_calls(driver: Driver, wire: Wire) -> None:
    function = {"name": "weather", "arguments": '{"city":"Vienna"}'}
    call = {"id": "t1", "type": "function", "function": function}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    wire.then(json_answer(completion(choices=[choice])))
    tools = [{"type": "function", "function": {"name": "weather"}}]
    messages = [{"role": "user", "content": "Weather?"}]
    whole = driver.generate(None, messages=messages, tools=tools)
    assert (wire.last.json["messages"], wire.last.json["tools"]) == (messages, tools)
    assert whole.text == ""
    assert whole.tool_calls == (ToolCall("t1", "weather", '{"city":"Vienna"}'),)


def test_streamed_answer_is_returned(driver: Driver, wire: Wire) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": 0.000007}
    wire.then(
        streamed(delta("Hel"), delta("lo."), delta(finish="stop"), {"choices": [], "usage": usage})
    )
    with driver.stream() as stream:
        chunks = list(stream)
    assert [chunk.text for chunk in chunks] == ["Hel", "lo.", "", ""]
    assert chunks[2].finish_reason == stream.stream.finish_reason == "stop"
    assert stream.stream.text == "Hello."
    assert stream.stream.usage == chunks[3].usage == TokenUsage(3, 2, 5)
    assert stream.stream.cost_usd == chunks[3].cost_usd == Decimal("0.000007")


def test_text_is_returned_as_soon_as_it_arrives(driver: Driver, wire: Wire) -> None:
    read = [threading.Event() for _ in range(3)]
    parts: list[Any] = []
    for n, was_read in enumerate(read):
        parts += [piece(event(delta(f"{n}"))), was_read]
    wire.then(STREAM, *parts, piece(event("[DONE]")) + END)
    with driver.stream() as stream:
        for n, was_read in enumerate(read):
            assert next(stream).text == f"{n}"  # the next chunk is sent only now
            was_read.set()
        assert list(stream) == []


def test_stream_is_read_however_it_is_cut_and_written(driver: Driver, wire: Wire) -> None:
    body = (
        ": OPENROUTER PROCESSING\r\n\r\n"
        'data: {"choices":[{"delta":\r\ndata: {"content":"ü\u2028 "}}]}\r\n\r\n'
        'event: message\rdata:{"choices":[{"delta":{"content":"€🙂"}}]}\r\r'
        "id: 7\nretry: 5\n: another comment\n\n"
        "data: [DONE]\n\n"
    ).encode()
    for size in (1, 2, 3, 7, 1000):
        cut = b"".join(piece(body[at : at + size]) for at in range(0, len(body), size))
        wire.then(STREAM + cut + END)
        with driver.stream() as stream:
            assert stream.texts() == ["ü\u2028 ", "€🙂"]


@FEWER
def test_tool_calls_of_a_stream_are_complete(driver: Driver, wire: Wire) -> None:
    def part(index: int, text: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": text, **({"name": more.pop("name")} if "name" in more else {})}
        calls = [{"index": index, "function": function, **more}]
        return {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}

    wire.then(
        streamed(
            part(0, "", id="t1", type="function", name="weather"),
            part(0, '{"city":'),
            part(1, '{"a":', id="t2", name="add"),
            part(0, '"Vienna"}'),
            part(1, "1}"),
            delta(finish="tool_calls"),
        )
    )
    with driver.stream() as stream:
        chunks = list(stream)
    whole = (ToolCall("t1", "weather", '{"city":"Vienna"}'), ToolCall("t2", "add", '{"a":1}'))
    assert [chunk.tool_calls for chunk in chunks] == [(), (), (), (), (), whole]
    assert stream.stream.tool_calls == whole


@FEWER
def test_prompt_or_messages(driver: Driver, wire: Wire) -> None:
    model = driver.client.user("u").model("m")
    for make in (model.generate, model.stream):
        for given in ({}, {"prompt": "Hi", "messages": []}, {"prompt": "Hi", "stream": True}):
            with pytest.raises(TypeError):
                driver.run(lambda make=make, given=given: make(**given))
        with pytest.raises(TypeError, match="no JSON form"):
            driver.run(lambda make=make: make("Hi", tools=[object()]))
    assert not wire.connections
    for wrong in ("", None, 7):
        with pytest.raises(TypeError, match="model"):
            driver.client.user("u").model(wrong)


@FEWER
def test_invalid_unicode_in_a_prompt_is_a_typed_error(driver: Driver, wire: Wire) -> None:
    # json.loads accepts such strings, so a user can send one to an app.
    for call in (driver.generate, driver.stream):
        with pytest.raises(WattfareError, match="surrogate") as caught:
            call("half a pair: \ud83d")
        assert caught.value.code == "invalid_request"
    assert not wire.connections


# -- what is raised


ERRORS = [
    ("not_connected", 402, WattfareNotConnectedError),
    ("budget_exceeded", 402, WattfareBudgetExceededError),
    ("funding_invalid", 402, WattfareFundingError),
    ("grant_invalid", 402, WattfareGrantError),
    ("rate_limited", 429, WattfareRateLimitError),
    ("auth", 401, WattfareAuthError),
    ("invalid_request", 400, WattfareError),
    ("invalid_request", 422, WattfareError),
    ("upstream", 502, WattfareError),
    ("unknown", 500, WattfareError),
]


@FEWER
def test_each_protocol_error_is_raised(driver: Driver, wire: Wire) -> None:
    for code, status, cls in ERRORS:
        wire.always = (error_answer(code, status, "Because.", x_request_id="r-1"),)
        for call in (driver.status, driver.generate, lambda: driver.stream().__enter__()):
            with pytest.raises(WattfareError) as caught:
                call()
            error = caught.value
            assert type(error) is cls
            assert (error.code, error.status, error.message) == (code, status, "Because.")
            assert error.request_id == "r-1"


@FEWER
def test_error_event_raises_its_typed_error(driver: Driver, wire: Wire) -> None:
    for code, status, cls in [*ERRORS, ("new_code", 502, WattfareError)]:
        error_event = event({"error": {"code": code, "message": "Because."}})
        wire.then(STREAM + piece(event(delta("one")) + error_event) + END)
        with driver.stream() as stream:
            assert next(stream).text == "one"  # although both arrived in one piece
            with pytest.raises(WattfareError, match=r"Because\.") as caught:
                next(stream)
        assert type(caught.value) is cls
        assert caught.value.code == ("upstream" if code == "new_code" else code)
        assert caught.value.http_status == (400 if code == "invalid_request" else status)


@FEWER
@pytest.mark.parametrize(
    "error_event",
    [
        {"error": {"code": 502, "message": "Provider disconnected"}},
        {"error": {"code": "server_error", "message": "Provider disconnected"}, **delta("")},
        {"error": {"message": "Provider disconnected", "code": None, "type": "server_error"}},
        {"error": {"code": 429, "message": "Provider disconnected"}, **delta(finish="error")},
    ],
)
def test_error_in_the_format_of_providers_is_raised(
    driver: Driver, wire: Wire, error_event: dict[str, Any]
) -> None:
    wire.then(streamed(delta("one"), error_event))
    with driver.stream() as stream, pytest.raises(WattfareError, match="disconnected") as caught:
        stream.texts()
    assert (caught.value.code, caught.value.status) == ("upstream", 502)
    wire.then(json_answer(error_event))  # with status 200
    with pytest.raises(WattfareError, match="disconnected") as caught:
        driver.generate()
    assert (caught.value.code, caught.value.status) == ("upstream", 502)


HTML = b"<!doctype html><title>502 Bad Gateway</title>"
NOT_THE_PROTOCOL = {
    "html": answer(200, HTML, content_type="text/html"),
    "html error": answer(502, HTML, content_type="text/html"),
    "html 404": answer(404, HTML, content_type="text/html"),
    "empty": answer(200),
    "empty error": answer(500),
    "no content": head(204, {}),
    "redirect": answer(302, headers={"Location": "/login"}),
    "not modified": head(304, {}),
    "teapot": answer(418, b"short and stout"),
    "half": answer(200, b'{"connected": tr'),
    "list": answer(200, b"[]"),
    "null": answer(200, b"null"),
    "text": answer(200, b'"OK"'),
    "number": answer(200, b"1e999"),
    "object": answer(200, b"{}"),
    "latin-1": answer(200, '{"usage": {"ä": 1}, "token": "ä", "id": "ä"}'.encode("latin-1")),
    "broken bytes": answer(200, b'\xff\xfe{"connected": true, "\xff\xfe": "\xc3"}'),
    "utf-16": answer(200, '{"connected": true}'.encode("utf-16")),
    "nested": answer(200, b"[" * 100_000),
    "nested inside": answer(
        200, b'{"choices": [{"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}], "
        b'"token": ' + b"[" * 90_000 + b"]" * 90_000 + b', "connected": [' + b"[" * 90_000
    ),
    "numbers as text": json_answer(
        {"connected": "yes", "token": 5, "expiresAt": "5", "choices": [{"message": "no"}]}
    ),
    "true for a number": json_answer(
        {
            "connected": True,
            "usage": {"monthlyUsd": True},
            "token": "t",
            "expiresAt": True,
            "choices": [{"message": {"content": 5}}],
        }
    ),
    "infinite": answer(
        200,
        b'{"connected": true, "usage": {"monthlyUsd": 1e999}, "token": "t", "expiresAt": 1e999,'
        b' "choices": [{"message": {}, "logprobs": 1e999}]}',
    ),
    "absurd": answer(
        200,
        b'{"connected": true, "usage": {"monthlyUsd": 1e99999999999999999999}, "token": "t",'
        b' "expiresAt": 1e99999999999999999999, "choices": 1e99999999999999999999}',
    ),
    "negative": answer(
        200,
        b'{"connected": true, "usage": {"monthlyUsd": -1}, "token": null, "expiresAt": -1.5,'
        b' "choices": [-1]}',
    ),
    "unknown code": error_answer("teapot", 418, "Short and stout."),
    "unknown code 402": error_answer("overdrawn", 402, "Short and stout."),
    "error of no shape": json_answer({"error": "no"}, 500),
    "error without a code": json_answer({"error": {"message": "no"}}, 503),
    "error of wrong types": json_answer({"error": {"code": [], "message": {}}}, 400),
    "error in latin-1": answer(
        400, '{"error": {"code": "auth", "message": "ä"}}'.encode("latin-1")
    ),
    "error nested": answer(400, b'{"error": ' + b"[" * 100_000),
}  # fmt: skip
CODES = {
    "html error": ("upstream", 502),
    "error without a code": ("upstream", 503),
    "error of wrong types": ("invalid_request", 400),
    "error in latin-1": ("invalid_request", 400),
    "error nested": ("invalid_request", 400),
    "html 404": ("unknown", 404),
    "empty error": ("unknown", 500),
    "no content": ("unknown", 204),
    "redirect": ("unknown", 302),
    "not modified": ("unknown", 304),
    "teapot": ("unknown", 418),
    "unknown code": ("unknown", 418),
    "unknown code 402": ("unknown", 402),
    "error of no shape": ("unknown", 500),
}


#: These answers can still be read, because the odd fields have no part of the answer.
ODD_BUT_READ = {"numbers as text", "true for a number"}


@FEWER
def test_answer_outside_of_the_protocol_is_a_typed_error(driver: Driver, wire: Wire) -> None:
    for name, whole in NOT_THE_PROTOCOL.items():
        wire.always = (whole,)
        for call in (driver.status, driver.create_session, driver.generate):
            if call == driver.generate and name in ODD_BUT_READ:
                assert call().text == ""
                continue
            with pytest.raises(WattfareError) as caught:
                call()
            expected = CODES.get(name, ("unknown", 200))
            assert (caught.value.code, caught.value.status) == expected, name
            assert str(caught.value)


@FEWER
def test_answer_that_is_not_a_stream_is_a_typed_error(driver: Driver, wire: Wire) -> None:
    for name, whole in NOT_THE_PROTOCOL.items():
        wire.then(whole)
        with pytest.raises(WattfareError) as caught, driver.stream() as stream:
            stream.texts()
        expected = CODES.get(name, ("upstream", 502))
        if name == "no content":
            expected = ("upstream", 502)
        assert (caught.value.code, caught.value.status) == expected, name


@FEWER
@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
        b'{"choices": [], "x": "\xff"}',
        b'{"choices": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"choices": [], "usage": {"cost": 1e99999999999999999999}, "x": 1e999}',
    ],
)
def test_event_that_is_not_a_chunk_is_a_typed_error(
    driver: Driver, wire: Wire, data: bytes
) -> None:
    wire.then(STREAM + piece(event(delta("one")) + b"data: " + data + b"\n\n") + END)
    with driver.stream() as stream:
        assert next(stream).text == "one"
        with pytest.raises(WattfareError) as caught:
            next(stream)
    assert (caught.value.code, caught.value.status) == ("upstream", 502)


ODD_EVENTS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b'{"choices": null}',
    b'{"choices": "none"}',
    b'{"choices": [null]}',
    b'{"choices": [{"delta": null}]}',
    b'{"choices": [{"delta": {"content": 5}}]}',
    b'{"choices": [{"index": null, "delta": {"tool_calls": null}}]}',
    b'{"id": 5, "model": {}, "choices": [], "usage": [], "error": null}',
]


@FEWER
def test_odd_event_loses_nothing_of_the_answer(driver: Driver, wire: Wire) -> None:
    for data in ODD_EVENTS:
        odd = b"data: " + data + b"\n\nevent: ping\ndata: ping\n\n"
        events = event(delta("one")) + odd + event(delta(" two")) + b"data: [DONE]\n\n"
        wire.then(STREAM + piece(events) + END)
        with driver.stream() as stream:
            assert "".join(stream.texts()) == "one two", data


@FEWER
@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data:[DONE]\n", b"data: [DONE]\r\n"])
@pytest.mark.parametrize("closes", [True, False])
def test_stream_may_end_without_an_empty_line(
    driver: Driver, wire: Wire, tail: bytes, closes: bool
) -> None:
    wire.then(STREAM + piece(event(delta("one")) + tail), *([END] if closes else [hang]))
    with driver.stream() as stream:
        assert stream.texts() == ["one"]


# -- when a call is retried


WORTH_IT = [
    error_answer("rate_limited", 429),
    error_answer("upstream", 502),
    answer(500),
    answer(408),
    answer(503, HTML, content_type="text/html"),
    error_answer("unknown", 599),
]


def test_status_and_session_are_retried(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=2)
    for failure in WORTH_IT:
        for call, success in ((driver.status, STATUS), (driver.create_session, SESSION)):
            wire.then(failure).then(failure).then(json_answer(success))
            assert call()
        assert len(wire.seen) == 6
        assert len(no_wait) == 4
        first = [no_wait[0], no_wait[2]]
        second = [no_wait[1], no_wait[3]]
        assert all(0.25 <= wait <= 0.5 for wait in first)
        assert all(0.5 <= wait <= 1.0 for wait in second)
        wire.seen.clear()
        no_wait.clear()


@pytest.mark.parametrize("failure", [(reset,), (head(200, {"Content-Length": "9"}) + b"x", close)])
def test_status_and_session_are_retried_after_network_errors(
    drive: Drive, wire: Wire, no_wait: list[float], failure: Any
) -> None:
    driver = drive(max_retries=1)
    for call, success in ((driver.create_session, SESSION),):
        wire.then(*failure).then(json_answer(success))
        assert call()
    assert (len(wire.seen), len(no_wait)) == (2, 1)


def test_refused_connection_is_always_retried(drive: Drive, no_wait: list[float]) -> None:
    driver = drive(f"http://127.0.0.1:{refused_port()}", max_retries=3)
    for n, call in enumerate((driver.status, driver.create_session, driver.generate)):
        with pytest.raises(WattfareNetworkError):
            call()
        assert len(no_wait) == 3 * (n + 1)
    with pytest.raises(WattfareNetworkError), driver.stream():
        pass
    assert len(no_wait) == 12


def test_inference_is_never_retried_once_sent(
    drive: Drive, wire: Wire, no_wait: list[float]
) -> None:
    driver = drive(max_retries=5)
    for failure in [(part,) for part in WORTH_IT] + [(reset,), (close,), (b"HTTP/1.1 2", close)]:
        for call in (driver.generate, lambda: driver.stream().__enter__()):
            wire.then(*failure)
            wire.seen.clear()
            with pytest.raises(WattfareError):
                call()
            assert len(wire.seen) == 1
    assert no_wait == []


@FEWER
def test_error_of_the_caller_is_not_retried(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=5)
    for code, status, _ in ERRORS:
        if status < 500 and status != 429:
            wire.then(error_answer(code, status))
            with pytest.raises(WattfareError):
                driver.status()
    assert no_wait == []


@FEWER
def test_max_retries_zero_turns_retries_off(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=0)
    wire.then(answer(503))
    with pytest.raises(WattfareError):
        driver.status()
    assert (len(wire.seen), no_wait) == (1, [])


@FEWER
def test_retries_end(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=2)
    wire.always = (error_answer("rate_limited", 429, retry_after="0"),)
    with pytest.raises(WattfareRateLimitError) as caught:
        driver.create_session()
    assert caught.value.retry_after == 0
    assert (len(wire.seen), len(no_wait)) == (3, 2)


@FEWER
def test_retry_waits_for_retry_after(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=2)
    wire.then(error_answer("rate_limited", 429, retry_after="7")).then(answer(503))
    wire.then(json_answer(STATUS))
    driver.status()
    assert no_wait[0] == 7
    assert no_wait[1] <= 1.0


@FEWER
def test_long_retry_after_raises_at_once(drive: Drive, wire: Wire, no_wait: list[float]) -> None:
    driver = drive(max_retries=2)
    wire.then(error_answer("rate_limited", 429, retry_after="31"))
    with pytest.raises(WattfareRateLimitError) as caught:
        driver.status()
    assert caught.value.retry_after == 31
    assert no_wait == []


# -- what is never revealed


def everything_shown(error: BaseException, *, screen: bool = False) -> str:
    """Everything that a log, an error reporter or (slowly) a developer's terminal may show of
    it."""
    # It has the errors before this one, too, also those that the traceback leaves out.
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [*captured.format(), *_values(captured)]
    if screen:
        shown += _values_on_screen(error)
    inner: BaseException | None = error
    while inner is not None:  # a suppressed error can still be reached
        shown += [repr(inner), str(inner)]
        inner = inner.__context__
    return "\n".join(shown)


def _values(captured: traceback.TracebackException) -> Iterator[str]:
    """The local variables of these errors, as an error reporter sends them."""
    for frame in captured.stack:
        yield from (frame.locals or {}).values()
    for inner in (captured.__cause__, captured.__context__, *(captured.exceptions or ())):
        if inner is not None:
            yield from _values(inner)


def _values_on_screen(error: BaseException) -> Iterator[str]:
    """The local variables of these errors, as rich shows them."""
    trace = Traceback.extract(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_hide_sunder=False,
        locals_hide_dunder=False,
    )
    for stack in trace.stacks:
        for frame in stack.frames:
            yield from (node.render() for node in (frame.locals or {}).values())


FAILURES: dict[str, tuple[Any, ...]] = {
    "reset": (reset,),
    "close": (close,),
    "silence": (hang,),
    "half": (head(200, {"Content-Length": "9"}) + b"x", close),
    "half and silence": (head(200, {"Content-Length": "9"}) + b"x", hang),
    "no HTTP": (b"banana\r\n\r\n", close),
    "html": (answer(200, HTML),),
    "401": (error_answer("auth", 401),),
    "401 that repeats the key": (error_answer("auth", 401, f"No such key: {SECRET}"),),
    "500 that repeats the request": (answer(500, f"Authorization: Bearer {SECRET}".encode()),),
    "redirect": (answer(302),),
}
CALLS: dict[str, Callable[[Driver], Any]] = {
    "status": lambda driver: driver.status(),
    "create_session": lambda driver: driver.create_session("u1", 20),
    "generate": lambda driver: driver.generate(),
    "stream": lambda driver: driver.stream().__enter__().texts(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_errors_hide_the_key(
    kind: Kind, drive: Drive, wire: Wire, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    driver = drive(timeout=Timeout(connect=PATIENCE, read=0.02, inference=0.02))
    wire.always = FAILURES[failure]
    for call in CALLS.values():
        with pytest.raises(WattfareError) as caught:
            call(driver)
        screen = failure == "reset" and call is CALLS["generate"] and kind in SCREENED
        assert NEEDLE not in everything_shown(caught.value, screen=screen)
    assert NEEDLE not in caplog.text


def test_connection_errors_hide_the_key(drive: Drive) -> None:
    driver = drive(f"http://127.0.0.1:{refused_port()}")
    for call in CALLS.values():
        with pytest.raises(WattfareNetworkError) as caught:
            call(driver)
        error_event = everything_shown(caught.value)
        assert NEEDLE not in error_event
        assert (
            "refused" in error_event
            or "ConnectError" in error_event
            or "Connect call failed" in error_event
        )


def test_broken_stream_hides_the_key_and_has_the_request_id(driver: Driver, wire: Wire) -> None:
    begin = STREAM.replace(b"\r\n\r\n", b"\r\nX-Request-Id: r-1\r\n\r\n")
    wire.then(begin, piece(event(delta("one"))), reset)
    with pytest.raises(WattfareError) as caught, driver.stream() as stream:
        stream.texts()
    assert NEEDLE not in everything_shown(caught.value)
    assert caught.value.request_id == "r-1"


@pytest.mark.parametrize("inside", ["head", "body", "stream"])
def test_timeout_of_the_app_hides_the_key(kind: Kind, wire: Wire, inside: str) -> None:
    # The usual `asyncio.timeout` cancels the call, deep inside.
    if not kind.is_async:
        pytest.skip("nothing can be cancelled")
    half = head(200, {"Content-Length": "9"}) + b"x"
    parts = {"head": (), "body": (half,), "stream": (STREAM, piece(event(delta("one"))))}
    wire.then(*parts[inside], hang)
    with driving(kind, wire.url) as driver:

        async def impatient() -> None:
            model = driver.client.user("u").model("m")
            async with asyncio.timeout(0.1):
                if inside != "stream":
                    await model.generate("Hi")
                async with model.stream("Hi") as stream:
                    async for _ in stream:
                        pass

        with pytest.raises(TimeoutError) as caught:
            driver.run(impatient)
        error_event = everything_shown(caught.value, screen=inside == "head" and kind in SCREENED)
        assert "impatient" in error_event
        assert NEEDLE not in error_event


def talkative(kind: Kind, failure: Callable[[], Any]) -> dict[str, Any]:
    """Options for an HTTP client that fails with the key in a local variable. Libraries that write
    the head of a request fail like this. ``failure`` may take some time."""

    async def fail(headers: Any) -> Any:
        sent = " ".join(f"{name}: {value}" for name, value in headers.items())
        await failure()
        return sent

    if kind.library == "aiohttp":

        async def middleware(request: Any, handler: Any) -> Any:
            return await fail({"authorization": "".join(SECRET)})

        return {"middlewares": (middleware,)}
    module = {"httpx": httpx, "httpx2": httpx2}[kind.library]
    if not kind.is_async:

        def handle(request: Any) -> Any:
            return asyncio.run(fail(request.headers))

        return {"transport": module.MockTransport(handle)}

    async def handle_async(request: Any) -> Any:
        return await fail(request.headers)

    return {"transport": module.MockTransport(handle_async)}


@pytest.mark.parametrize("kind", [k for k in KINDS if k.whose == "injected"], ids=lambda k: k.id)
@pytest.mark.parametrize("ending", ["failure", "bug", "timeout"])
def test_library_errors_hide_the_key(kind: Kind, ending: str) -> None:
    failures = {"httpx": httpx.WriteError, "httpx2": httpx2.WriteError}
    error: Any = failures.get(kind.library, aiohttp.ClientOSError)("broken pipe")

    async def failure() -> None:
        if ending == "failure":
            raise error
        if ending == "bug":
            raise ZeroDivisionError
        await asyncio.Event().wait()

    if ending == "timeout" and not kind.is_async:
        pytest.skip("nothing can be cancelled")
    with driving(kind, "http://w.test", http=talkative(kind, failure)) as driver:

        async def call() -> None:
            async with asyncio.timeout(0.05):
                await driver.client.user("u1").status()

        expected = {"failure": WattfareError, "bug": ZeroDivisionError, "timeout": TimeoutError}
        with pytest.raises(expected[ending]) as caught:
            driver.run(call if kind.is_async else driver.client.user("u1").status)
    assert NEEDLE not in everything_shown(caught.value)


@BOTH
def test_reprs_hide_the_key(cls: Any) -> None:
    client = cls(SECRET, base_url="https://w.test")
    service = client._runner.caller
    user, grant = client.user("u1"), client.grant(f"gr_{NEEDLE}")
    call = calls.chat_completion("m", "Hi", None, {}, stream=True)(grant._paid_by.payer)
    request = service.request(call)
    error_event = [
        client,
        service,
        vars(service),
        request,
        request.headers,
        grant,
        grant._paid_by.payer,
    ]
    error_event += [
        user,
        user.model("m"),
        grant.model("m"),
        service.secret_key[:8],
        client.__dict__,
    ]
    error_event += [CreatedSession(NEEDLE, 1)]
    assert NEEDLE not in "".join(map(repr, error_event))
    assert repr(client) == f"{cls.__name__}(base_url='https://w.test')"
    assert repr(user.model("a/b")) in ("Model('a/b')", "AsyncModel('a/b')")


@BOTH
@pytest.mark.parametrize(
    "wrong", [{"base_url": "nowhere"}, {"http_client": 7}, {"http_client": "http://x"}]
)
def test_failed_construction_hides_the_key(cls: Any, wrong: Any) -> None:
    def make() -> Any:
        return cls(SECRET, **wrong)

    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert NEEDLE not in everything_shown(caught.value)


# -- session_handler


def resolver(value: Any, is_async: bool) -> Callable[[Request], Any]:
    """A `resolve_user` that returns this value or raises this error."""

    def give(_: Request) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    async def give_later(request: Request) -> Any:
        await asyncio.sleep(0)
        return give(request)

    return give_later if is_async else give


SYNC_AND_ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def wire_of(body: bytes) -> tuple[str, str]:
    error = json.loads(body)["error"]
    return error["code"], error["message"]


@FEWER
@SYNC_AND_ASYNC
def test_session_handler_returns_a_token(driver: Driver, wire: Wire, is_async: bool) -> None:
    for limit in (5, resolver(Decimal("5"), is_async), resolver(RequestLimit(5), not is_async)):
        wire.then(json_answer(SESSION))
        response = driver.handle(post(), resolver("u/1", is_async), limit)
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        assert json.loads(response.body) == SESSION
        assert wire.last.json == {"appUserId": "u/1", "requestLimit": {"monthlyUsd": 5}}
        assert "jwt" not in repr(response)


@FEWER
@SYNC_AND_ASYNC
def test_session_handler_without_a_user(
    driver: Driver, wire: Wire, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    response = driver.handle(post(), resolver(None, is_async))
    assert response.status == 401
    assert wire_of(response.body)[0] == "auth"
    assert not wire.connections
    assert not caplog.records  # the app is correct


@FEWER
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_session_handler_accepts_post_only(driver: Driver, wire: Wire, method: str) -> None:
    request = Request(method, "/token", post().headers)
    response = driver.handle(request, resolver("u1", False))
    assert (response.status, response.headers["allow"]) == (405, "POST")
    assert wire_of(response.body)[0] == "invalid_request"
    assert not wire.connections


@FEWER
def test_session_handler_refuses_other_sites(driver: Driver, wire: Wire) -> None:
    asked: list[Request] = []

    def resolve(request: Request) -> str:
        asked.append(request)
        return "u1"

    for request in (
        post(sec_fetch_site="cross-site"),
        post(sec_fetch_site="same-site"),
        post(origin="https://evil.test", host="app.test"),
        post(origin="null", host="app.test"),
        post(origin="https://app.test:444", host="app.test"),
    ):
        response = driver.handle(request, resolve)
        assert response.status == 403
        assert wire_of(response.body)[0] == "invalid_request"
    assert not asked
    assert not wire.connections
    for request in (
        post(sec_fetch_site="same-origin"),
        post(sec_fetch_site="none"),
        post(origin="https://app.test", host="app.test"),
        post(origin="https://partner.test", sec_fetch_site="cross-site", host="app.test"),
        post(),
    ):
        wire.then(json_answer(SESSION))
        response = driver.handle(request, resolve, allowed_origins=["https://partner.test"])
        assert response.status == 200


@FEWER
@SYNC_AND_ASYNC
@pytest.mark.parametrize(
    ("user", "limit"),
    [
        (RuntimeError("the password is hunter2"), None),
        (7.5, None),
        ("", None),
        (b"u1", None),
        ({"id": "hunter2"}, None),
        ("u1", RuntimeError("the password is hunter2")),
        ("u1", "hunter2"),
        ("u1", -1),
        ("u1", float("nan")),
        ("u1", KeyError("hunter2")),
    ],
)
def test_error_of_the_app_is_hidden_and_logged(
    driver: Driver,
    wire: Wire,
    is_async: bool,
    user: Any,
    limit: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = None if limit is None else resolver(limit, is_async)
    response = driver.handle(post(), resolver(user, is_async), limits)
    assert response.status == 500
    assert wire_of(response.body)[0] == "unknown"
    assert b"hunter2" not in response.body
    assert b"resolve" not in response.body
    assert not wire.connections
    record = caplog.records[-1]
    assert (record.name, record.levelno) == ("wattfare_mw", logging.ERROR)
    assert record.exc_info is not None


@FEWER
def test_session_handler_raises_an_error_for_the_framework_unchanged(driver: Driver) -> None:
    error = LookupError()
    with pytest.raises(LookupError) as caught:
        driver.handle(post(), resolver(error, False), let_through=(LookupError,))
    assert caught.value is error
    assert not is_held_by_its_traceback(error)


@FEWER
def test_session_handler_forwards_wattfare_errors(
    driver: Driver, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    for code, status, _ in ERRORS:
        caplog.clear()
        wire.then(error_answer(code, status, "Because.", retry_after="7"))
        response = driver.handle(post(), resolver("u1", False))
        assert response.status == status
        assert wire_of(response.body) == (code, "Because.")
        assert response.headers["retry-after"] == "7"
        records = [record for record in caplog.records if record.name == "wattfare_mw"]
        if code == "auth":
            # No user can pay until the app's key is fixed: this deserves an alarm.
            [record] = records
            assert record.levelno == logging.ERROR
            assert "secret key" in record.getMessage()
            assert "WATTFARE_SECRET_KEY" in record.getMessage()
        assert NEEDLE not in caplog.text


@FEWER
def test_retry_after_is_whole_seconds(driver: Driver, wire: Wire) -> None:
    wire.then(error_answer("rate_limited", 429, retry_after="1.2"))
    response = driver.handle(post(), resolver("u1", False))
    assert response.headers["retry-after"] == "2"


def test_unreachable_service_is_502_to_the_browser(kind: Kind) -> None:
    with driving(kind, f"http://127.0.0.1:{refused_port()}") as driver:
        response = driver.handle(post(), resolver("u1", False))
    assert response.status == 502
    assert wire_of(response.body)[0] == "network"
    assert b"127.0.0.1" not in response.body


@FEWER
def test_repeated_key_does_not_reach_the_browser(
    driver: Driver, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.then(error_answer("auth", 401, f"Unknown key {SECRET}"))
    response = driver.handle(post(), resolver("u1", False))
    assert NEEDLE.encode() not in response.body
    assert NEEDLE not in caplog.text


def test_interrupt_propagates_through_the_session_handler() -> None:
    with driving(KINDS[2], "http://w.test") as driver, pytest.raises(KeyboardInterrupt):
        driver.handle(post(), resolver(KeyboardInterrupt(), False))
