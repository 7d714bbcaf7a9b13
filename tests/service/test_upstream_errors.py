"""Refusals of upstreams, in the formats of many providers: which message, code and status reach the
client, and what the log tells the operator."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import openai
import pytest
from support.service import App, Service
from support.upstream import Exchange, Upstream, good

from wattfare_mw import to_wattfare_error
from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat.meter import Meter
from wattfare_mw.service.models import upstream_answers, upstream_errors
from wattfare_mw.service.models.credential import Credential

WORDS = "said the upstream"
NO_KEY = Credential(None)


def read(status: int, body: Any, **headers: str) -> WattfareError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return upstream_errors.failure(status, data, named, NO_KEY)


RAW = {"error": {"message": WORDS, "type": "invalid_request_error", "code": "too_long"}}


def openrouter(raw: Any, code: int = 400) -> dict[str, Any]:
    metadata = {"raw": raw, "provider_name": "P"}
    return {"error": {"message": "Provider returned error", "code": code, "metadata": metadata}}


#: The formats: a status, a body, and the code that is forwarded.
SHAPES: dict[str, tuple[int, Any, str | None]] = {
    "openai": (400, {"error": {"message": WORDS, "param": None, "code": "too_long"}}, "too_long"),
    "azure": (
        400,
        {"error": {"message": WORDS, "code": "content_filter", "status": 400}},
        "content_filter",
    ),
    "anthropic": (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": WORDS}},
        None,
    ),
    "google": (
        400,
        [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
        "INVALID_ARGUMENT",
    ),
    "text": (400, {"error": WORDS}, None),
    "xai": (400, {"code": "Client specified an invalid argument", "error": WORDS}, None),
    "vllm": (
        400,
        {"object": "error", "message": WORDS, "type": "BadRequestError", "code": 400},
        None,
    ),
    "mistral": (422, {"object": "error", "message": WORDS, "code": "too_long"}, "too_long"),
    "mistral, nested": (
        422,
        {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body"], "msg": WORDS}]},
            "type": "invalid_request_error",
            "code": None,
        },
        None,
    ),
    "flat": (400, {"message": WORDS, "code": "too_long"}, "too_long"),
    "nest": (400, {"statusCode": 400, "message": WORDS, "error": "Bad Request"}, None),
    "detail": (422, {"detail": WORDS}, None),
    "fastapi": (422, {"detail": [{"loc": ["body", "n"], "msg": WORDS, "type": "int"}]}, None),
    "fastapi, two": (
        422,
        {"detail": [{"loc": ["body"], "msg": "a"}, {"loc": ["body"], "msg": WORDS}]},
        None,
    ),
    "detail, an error": (
        400,
        {"detail": {"error": {"message": WORDS, "code": "too_long"}}},
        "too_long",
    ),
    "errors": (400, {"success": False, "errors": [{"code": 7003, "message": WORDS}]}, None),
    "litellm": (
        400,
        {"error": {"message": WORDS, "type": None, "param": None, "code": "400"}},
        None,
    ),
    "openrouter, json": (400, openrouter(json.dumps(RAW)), "too_long"),
    "openrouter, text": (400, openrouter(WORDS), None),
    "openrouter, object": (400, openrouter(RAW), "too_long"),
    "openrouter, list": (400, openrouter(json.dumps([RAW])), "too_long"),
    "openrouter, twice": (400, openrouter(json.dumps(openrouter(json.dumps(RAW)))), "too_long"),
    "as text in the message": (
        400,
        {"error": {"message": json.dumps(RAW), "code": 400}},
        "too_long",
    ),
    "databricks": (400, {"error_code": "BAD_REQUEST", "message": WORDS}, "BAD_REQUEST"),
    "baidu": (400, {"error_code": 336003, "error_msg": WORDS}, None),
    "tencent": (
        400,
        {"Response": {"Error": {"Code": "InvalidParameter", "Message": WORDS}, "RequestId": "r"}},
        "InvalidParameter",
    ),
    "volcengine": (
        400,
        {"ResponseMetadata": {"RequestId": "r", "Error": {"Code": "TooLong", "Message": WORDS}}},
        "TooLong",
    ),
    "writer": (400, {"tpe": "BadRequest", "errors": [{"description": WORDS, "key": "k"}]}, None),
    "problem": (400, {"type": "about:blank", "title": "Bad", "detail": WORDS, "status": 400}, None),
    "problem without details": (400, {"type": "about:blank", "title": WORDS}, None),
    "too large": (413, {"error": {"message": WORDS}}, None),
    "no json type": (400, json.dumps({"error": {"message": WORDS}}).encode(), None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_message_and_code_are_forwarded(shape: str) -> None:
    status, body, code = SHAPES[shape]
    error = read(status, body)
    assert (error.code, error.status) == ("invalid_request", 400)
    assert WORDS in error.message
    assert "Provider returned error" not in error.message
    assert error.upstream_code == code
    assert WORDS not in error.log_message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>no</html>",
        b"\xff",
        b"7",
        b"null",
        [],
        {},
        {"error": {}},
        {"error": [[[]]]},
        {"detail": [5]},
        {"message": {"text": "x"}},
        openrouter("<html>no</html>", 400),
    ],
    ids=str,
)
def test_body_without_a_message(body: Any) -> None:
    error = read(400, body)
    assert error.code == "invalid_request"
    assert error.upstream_code is None
    assert "html" not in error.message


def test_deeply_nested_error() -> None:
    body: Any = WORDS
    for _ in range(30):
        body = {"error": body}
    assert read(400, body).code == "invalid_request"


@pytest.mark.parametrize(
    ("status", "body", "code", "ours"),
    [
        (408, {"error": {"message": WORDS}}, "upstream", 502),
        (500, {"error": {"message": WORDS}}, "upstream", 502),
        (
            529,
            {"type": "error", "error": {"type": "overloaded_error", "message": WORDS}},
            "upstream",
            502,
        ),
        (425, {"error": {"message": WORDS}}, "upstream", 502),
        # Bedrock: the model has failed.
        (424, {"message": WORDS, "originalStatusCode": 500}, "upstream", 502),
        # Groq: the flex tier has no capacity. console.groq.com/docs/errors
        (498, {"error": {"message": WORDS, "code": "capacity_exceeded"}}, "upstream", 502),
        (499, {"error": {"message": WORDS}}, "upstream", 502),
        (413, {"error": {"message": WORDS}}, "invalid_request", 400),
        # A gateway may answer with plain text, or in a shape of its own.
        (413, f"{WORDS}\n".encode(), "invalid_request", 400),
        (500, WORDS.encode(), "upstream", 502),
        (
            400,
            {"fault": {"faultstring": WORDS, "detail": {"errorcode": "x"}}},
            "invalid_request",
            400,
        ),
        (400, {"errorCode": "BAD", "errorMessage": WORDS}, "invalid_request", 400),
        (400, {"err": {"msg": WORDS}}, "invalid_request", 400),
        (422, {"detail": WORDS}, "invalid_request", 400),
        (429, {"error": {"message": WORDS, "code": "rate_limit_exceeded"}}, "rate_limited", 429),
        # Google sends this for an ordinary rate limit.
        (
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "You exceeded your current quota: " + WORDS,
                        "status": "RESOURCE_EXHAUSTED",
                    }
                }
            ],
            "rate_limited",
            429,
        ),
        (403, {"error": {"message": WORDS, "code": "model_not_found"}}, "invalid_request", 400),
    ],
)
def test_statuses_are_translated(status: int, body: Any, code: str, ours: int) -> None:
    error = read(status, body)
    assert (error.code, error.http_status) == (code, ours)
    assert WORDS in error.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": "429", "message": WORDS}}, "rate_limited"),
        ({"error": {"type": "overloaded_error", "message": WORDS}}, "upstream"),
        ({"error": {"type": "rate_limit_error", "message": WORDS}}, "rate_limited"),
        ({"error": {"code": "context_length_exceeded", "message": WORDS}}, "invalid_request"),
        ({"error": WORDS}, "upstream"),
        ({"error": {"http_status_code": 422, "message": WORDS}}, "invalid_request"),
        ({"base_resp": {"status_code": 1002, "status_msg": WORDS}}, "rate_limited"),
        ({"base_resp": {"status_code": 2013, "status_msg": WORDS}}, "invalid_request"),
        ({"base_resp": {"status_code": 1039, "status_msg": WORDS}}, "rate_limited"),
        ({"base_resp": {"status_code": 2056, "status_msg": WORDS}}, "rate_limited"),
        ({"base_resp": {"status_code": 1033, "status_msg": WORDS}}, "upstream"),
        # In Zhipu's `code`, 1004 and 1039 are no statuses.
        ({"error": {"code": "1039", "message": WORDS}}, "upstream"),
        ({"object": "error", "message": WORDS, "code": 400}, "invalid_request"),
        ({"error_type": "BadRequestError", "error_message": WORDS}, "invalid_request"),
        ([{"error": {"code": 400, "message": WORDS}}], "invalid_request"),
        (openrouter(json.dumps(RAW), 502), "upstream"),
    ],
    ids=str,
)
def test_error_with_status_200_is_translated(body: Any, code: str) -> None:
    error = upstream_errors.error_of(body, NO_KEY)
    assert error is not None
    assert (error.code, error.message) == (code, WORDS)


#: Errors about the operator's account, and a word of the advice that the log gives.
ACCOUNT = {
    "401": (401, {"error": {"message": WORDS}}, "key"),
    "litellm, budget": (
        400,
        {"error": {"message": WORDS, "type": "budget_exceeded", "code": "400"}},
        "credit",
    ),
    "dashscope": (400, {"code": "Arrearage", "message": WORDS}, "credit"),
    "zhipu": (
        429,
        {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}},
        "credit",
    ),
    "zhipu, locked": (
        429,
        {"error": {"code": "1112", "message": "Your account has been locked, please contact us"}},
        "credit",
    ),
    "401, html": (401, b"<html>", "key"),
    "402": (402, {"error": {"message": WORDS}}, "credit"),
    "403": (403, {"error": {"message": WORDS}}, "allowed"),
    "openai, quota": (
        429,
        {"error": {"message": WORDS, "type": "insufficient_quota", "code": "insufficient_quota"}},
        "credit",
    ),
    "openai, key": (500, {"error": {"message": WORDS, "code": "invalid_api_key"}}, "key"),
    "anthropic": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the API.",
            },
        },
        "credit",
    ),
    "anthropic, limit": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "You have reached your specified API usage limits.",
            },
        },
        "credit",
    ),
    "google, billing": (
        400,
        [{"error": {"code": 400, "message": f"{WORDS}: enable billing on your project"}}],
        "credit",
    ),
    "novita": (400, {"code": 400, "reason": "X", "message": "not enough balance"}, "credit"),
    "deepinfra": (422, {"detail": {"error": "please enter a payment method"}}, "credit"),
    "anthropic, disabled": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "This organization has been disabled.",
            },
        },
        "credit",
    ),
    "siliconflow": (
        400,
        {"code": 30001, "message": "Sorry, your account balance is insufficient"},
        "credit",
    ),
    "google": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": WORDS,
                    "status": "INVALID_ARGUMENT",
                    "details": [{"reason": "API_KEY_INVALID"}],
                }
            }
        ],
        "key",
    ),
    "google, words": (
        400,
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
        "key",
    ),
    "xai": (
        429,
        {
            "code": "Some resource has been exhausted",
            "error": "Your team has used all available credits.",
        },
        "credit",
    ),
    "xai, key": (
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "Incorrect API key provided: xa***",
        },
        "key",
    ),
    "moonshot": (
        429,
        {"error": {"type": "exceeded_current_quota_error", "message": WORDS}},
        "credit",
    ),
    "deepseek": (
        402,
        {
            "error": {
                "message": "Insufficient Balance",
                "type": "unknown_error",
                "code": "invalid_request_error",
            }
        },
        "credit",
    ),
    "openrouter's provider": (
        400,
        openrouter(json.dumps({"error": {"message": WORDS, "code": "insufficient_quota"}})),
        "credit",
    ),
    "detail": (401, {"detail": WORDS}, "key"),
}


@pytest.mark.parametrize("name", ACCOUNT)
def test_error_about_the_operators_account_is_hidden(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, body, advice = ACCOUNT[name]
    error = read(status, body, retry_after="7")
    assert (error.code, error.http_status, error.retry_after) == ("upstream", 502, None)
    assert error.upstream_code is None
    wire = json.dumps(error.to_wire())
    for words in (WORDS, "credit", "API key", "Balance", "quota", "reconnect"):
        assert words not in wire
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert advice in record.getMessage().partition("). ")[2]
    assert WORDS not in record.getMessage()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": formatdate(time.time() - 60, usegmt=True)}, 1),
        ({"retry_after_ms": "2500", "retry_after": "3"}, 2.5),
        ({"retry_after": "soon"}, 1),
        ({}, 1),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float) -> None:
    error = read(429, {"error": {"message": WORDS}}, **headers)
    assert error.retry_after == seconds


def test_retry_after_date_in_the_future() -> None:
    error = read(503, b"", retry_after=formatdate(time.time() + 100, usegmt=True))
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 101


# -- through the service


@pytest.fixture
def app(forwarding: Service, upstream: Upstream) -> Iterator[App]:
    upstream.reset()
    with forwarding.app() as app:
        app.connect(monthlyUsd=100)
        yield app
    upstream.script = good
    assert not upstream.failures


@pytest.mark.parametrize("stream", [False, True])
def test_upstream_code_reaches_the_openai_package(
    app: App, upstream: Upstream, stream: bool
) -> None:
    error = {"error": {"message": WORDS, "code": "context_length_exceeded"}}
    upstream.script = lambda exchange: exchange.answer(error, status=400)
    with (
        openai.OpenAI(
            api_key=app.keys.secret_key,
            base_url=f"{app.service.url}/api/v1",
            default_headers={"X-Wattfare-User": "u1"},
            max_retries=0,
        ) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(
            model="fake/model", messages=[{"role": "user", "content": "hi"}], stream=stream
        )
    assert caught.value.code == "invalid_request"
    body: Any = caught.value.body
    assert body["upstreamCode"] == "context_length_exceeded"
    found = to_wattfare_error(caught.value)
    assert found is not None
    assert found.upstream_code == "context_length_exceeded"
    assert found.request_id == caught.value.request_id


def test_error_event_has_the_code_too(app: App, upstream: Upstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one")
        exchange.event({"error": {"message": WORDS, "code": "server_overloaded"}})
        exchange.done()

    upstream.script = script
    answer = app.chat(model="fake/model", stream=True)
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"] == {
        "code": "upstream",
        "message": WORDS,
        "upstreamCode": "server_overloaded",
        "requestId": answer.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    "error",
    [
        # xAI: UKGovernmentBEIS/inspect_ai#2267, Wei-Shaw/sub2api#4785.
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": f"Content violates usage guidelines. {WORDS}",
        },
        {"code": "permission-denied", "error": f"Content violates usage guidelines. {WORDS}"},
        {"error": {"code": 403, "type": "moderation_error", "message": WORDS}},
    ],
)
def test_refused_prompt_is_not_about_the_account(
    error: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    found = read(403, error)
    assert (found.code, found.http_status) == ("invalid_request", 403)
    assert WORDS in found.message
    assert not caplog.records


def test_empty_account_is_not_a_rate_limit(app: App, upstream: Upstream) -> None:
    error = {"error": {"message": WORDS, "code": "insufficient_quota"}}
    headers = {"retry-after": "7"}
    upstream.script = lambda exchange: exchange.answer(error, status=429, headers=headers)
    answer = app.chat(model="fake/model")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream")
    assert WORDS not in answer.text
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"type": "error", "message": WORDS}, WORDS),
        ({"detail": WORDS}, WORDS),
        ({"success": False, "errors": [{"message": WORDS}]}, WORDS),
        ({"code": "InternalError", "message": WORDS, "request_id": "r"}, WORDS),
        ({"success": False, "message": WORDS}, WORDS),
        ({"code": 500, "msg": WORDS}, WORDS),
        ({"statusCode": 500, "message": WORDS}, WORDS),
        ({"error_code": 336100, "error_msg": WORDS}, WORDS),
        ({"status": "failure", "message": WORDS}, WORDS),
        ({"message": WORDS}, WORDS),
        ({"choices": None, "error_type": "BadRequestError", "error_message": WORDS}, WORDS),
        ({"choices": [], "error_type": "", "error_message": ""}, None),
        ({"status": "queued", "message": WORDS}, None),
        ({"status": ["error"], "message": WORDS}, None),
        ({"code": 200, "msg": WORDS}, None),
        ({"code": 500}, None),
        ({"code": "chat_1", "title": WORDS}, None),
        ({"base_resp": {"status_code": 1013, "status_msg": WORDS}}, WORDS),
        ({"choices": [], "x_groq": {"id": "r", "error": WORDS}}, WORDS),
        ({"type": "ping"}, None),
        ({"code": 200, "message": WORDS}, None),
        ({"choices": None, "base_resp": {"status_code": 0, "status_msg": ""}}, None),
        ({"choices": [], "base_resp": {"status_code": "0", "status_msg": "success"}}, None),
        ({"choices": [], "x_groq": {"id": "r"}}, None),
        ({"choices": [], "error": {"message": "", "type": "", "param": "", "code": None}}, None),
        ({"choices": [], "error": {"message": "", "type": WORDS}}, "The upstream failed (502)."),
        ({"detail": None, "errors": []}, None),
        ({"choices": [], "type": "error", "detail": WORDS}, None),
        ({"index": 0, "delta": {}, "detail": WORDS}, None),
    ],
)
def test_flat_error_with_status_200(answer: dict[str, Any], words: str | None) -> None:
    error = upstream_errors.error_of(answer, NO_KEY)
    assert (error and error.message) == words


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "error", "message": WORDS},
        {"statusCode": 500, "message": WORDS},
        {"choices": None, "msg": WORDS},
        {"error_code": 17, "error_msg": WORDS},
    ],
    ids=str,
)
def test_message_of_an_answer_without_choices_is_forwarded(answer: dict[str, Any]) -> None:
    with pytest.raises(WattfareError, match=WORDS) as caught:
        upstream_answers.read_completion(json.dumps(answer).encode(), Meter(None, 10), NO_KEY)
    assert caught.value.code == "upstream"


@pytest.mark.parametrize("ping", [b"", b" ", b"ping", b"keep-alive", b"PING "])
def test_ping_that_is_not_json_is_ignored(ping: bytes) -> None:
    meter = Meter(None, 10)
    read = upstream_answers.read_chunk(ping, meter, NO_KEY)
    assert (read.passes, read.choices, meter.generated) == (False, False, False)


@pytest.mark.parametrize("broken", [b"{", b'{"choices": [', b"<html>", b"one two"])
def test_event_that_is_not_json_is_a_failure(broken: bytes) -> None:
    with pytest.raises(WattfareError, match="not JSON"):
        upstream_answers.read_chunk(broken, Meter(None, 10), NO_KEY)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ("31s", 31),
        ("1.500s", 1.5),
        ("0s", 1),
        ("-5s", 1),
        ("soon", 1),
        (None, 1),
        ("9" * 99 + "s", 1),
    ],
)
def test_delay_in_an_error_of_google_is_read(delay: object, seconds: float) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    body = [{"error": {"code": 429, "message": WORDS, "details": details}}]
    assert read(429, body).retry_after == seconds
    assert read(429, body, retry_after="7").retry_after == 7


@pytest.mark.parametrize(
    "error",
    [
        {"retry_after": 31},
        {"retryAfter": 31.0},
        {"metadata": {"retry_after_seconds": 31, "provider_name": "p"}},
    ],
    ids=str,
)
def test_delay_in_an_error_is_read(error: dict[str, Any]) -> None:
    assert read(429, {"error": {"code": 429, "message": WORDS, **error}}).retry_after == 31


def test_end_of_a_rate_limit_of_openrouter_is_read() -> None:
    body: dict[str, Any] = {"error": {"code": 429, "message": WORDS, "metadata": {}}}
    for ahead, most in ((100_000, 100), (-100_000, 1), (10**9, 1)):
        reset = str(int(time.time() * 1000) + ahead)
        body["error"]["metadata"]["headers"] = {"X-RateLimit-Reset": reset}
        waits = read(429, body).retry_after
        assert waits is not None
        assert most - 10 < waits <= most
    for odd in (None, "soon", {"X-RateLimit-Reset": 5}, {"X-RateLimit-Reset": "soon"}):
        body["error"]["metadata"]["headers"] = odd
        assert read(429, body).retry_after == 1


@pytest.mark.parametrize("delay", ["31", True, -1, 10**9, None, [31]], ids=str)
def test_delay_that_cannot_be_true_is_ignored(delay: object) -> None:
    body = {"error": {"code": 429, "message": WORDS, "retry_after": delay}}
    assert read(429, body).retry_after == 1
