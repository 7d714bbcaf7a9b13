"""The errors: their codes and copies, what an answer translates to, and the three helpers on errors
that real libraries wrap."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.http_client import http_client
from support.wire import (
    END,
    STREAM,
    Wire,
    delta,
    error_answer,
    event,
    json_answer,
    piece,
    run_wire,
)

import wattfare_mw
from wattfare_mw import (
    WattfareAuthError,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareGrantError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
    is_budget_exceeded,
    is_not_connected,
    to_wattfare_error,
)
from wattfare_mw.error_responses import MethodNotAllowedError
from wattfare_mw.errors import STATUS_BY_CODE, error_from_answer, make_error, retry_after_seconds
from wattfare_mw.users import NotSignedInError

FAMILY = [
    (WattfareNotConnectedError, "not_connected", 402),
    (WattfareBudgetExceededError, "budget_exceeded", 402),
    (WattfareFundingError, "funding_invalid", 402),
    (WattfareGrantError, "grant_invalid", 402),
    (WattfareRateLimitError, "rate_limited", 429),
    (WattfareAuthError, "auth", 401),
    (WattfareNetworkError, "network", 0),
]


@pytest.mark.parametrize(("cls", "code", "status"), FAMILY)
def test_each_class_has_its_code_and_status(
    cls: type[WattfareError], code: str, status: int
) -> None:
    error = cls()
    assert (error.code, error.status) == (code, status)
    assert error.message
    assert error.to_wire() == {"error": {"code": code, "message": error.message}}
    assert type(make_error(code)) is cls
    assert make_error(code).status == STATUS_BY_CODE[code] == status
    assert error.http_status == (status or 502)


def test_other_codes_have_the_base_class() -> None:
    assert (WattfareError().code, WattfareError().status) == ("unknown", 500)
    for code in ("invalid_request", "upstream", "unknown"):
        assert type(make_error(code)) is WattfareError
        assert make_error(code).code == code


EVERY = [
    *[cls("Because.", retry_after=7.5, request_id="r-1") for cls, _, _ in FAMILY],
    WattfareError("Because.", code="invalid_request", status=422),
    WattfareNetworkError("Because.", sent=False),
    NotSignedInError(),
    MethodNotAllowedError(("GET", "HEAD")),
]


@pytest.mark.parametrize("error", EVERY, ids=repr)
def test_copy_equals_the_error(error: WattfareError) -> None:
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in protocols]
    for twin in (copy.copy(error), copy.deepcopy(error), *pickled):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert (str(twin), repr(twin), twin.args) == (str(error), repr(error), error.args)
        assert twin.to_json() == error.to_json()
        assert twin is not error


def test_copy_keeps_notes() -> None:
    error = WattfareError("Because.")
    error.add_note("of user 7")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["of user 7"]


# -- answers


@given(st.integers(100, 599), st.binary(max_size=60))
@example(500, b'{"error":' * 20_000)
@example(402, b'{"error": {"code": "\xff"}}')
@example(402, b'{"error": {"code": "budget_exceeded", "message": 5}}')
@example(400, b'{"error": {"code": {"code": "auth"}}}')
def test_any_answer_is_a_typed_error(status: int, body: bytes) -> None:
    error = error_from_answer(status, body)
    assert error.status == status
    assert error.code in STATUS_BY_CODE
    assert str(error)
    assert 400 <= error.http_status <= 599


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (401, "auth"),
        (402, "unknown"),
        (403, "invalid_request"),
        (404, "unknown"),
        (405, "invalid_request"),
        (408, "upstream"),
        (409, "invalid_request"),
        (413, "invalid_request"),
        (415, "invalid_request"),
        (418, "unknown"),
        (422, "invalid_request"),
        (429, "rate_limited"),
        (500, "unknown"),
        (502, "upstream"),
        (503, "upstream"),
        (504, "upstream"),
        (529, "upstream"),
    ],
)
def test_status_without_a_code(status: int, code: str) -> None:
    for body in (b"", b"<html>", b'{"error": "no"}', b'{"error": {"code": "new"}}'):
        assert error_from_answer(status, body).code == code


def test_unknown_code_is_kept_in_the_message() -> None:
    error = error_from_answer(402, b'{"error": {"code": "overdrawn", "message": "Sorry."}}')
    assert "Sorry." in str(error)
    assert "overdrawn" in str(error)
    assert len(str(error_from_answer(402, b'{"error":{"code":"' + b"x" * 9999 + b'"}}'))) < 300


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("1.5", 1.5),
        (" 3 ", 3),
        (None, None),
        ("", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e99", 86400),
        ("86401", 86400),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400),
        ("Fri, 99 Dec 1999 23:59:59 GMT", None),
        ("soon", None),
    ],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_retry_after_as_a_date() -> None:
    seconds = retry_after_seconds(formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None
    assert 0 < seconds <= 101


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "120000"}, 120),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({"retry-after-ms": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_milliseconds(headers: dict[str, str], seconds: float | None) -> None:
    assert error_from_answer(429, b"", headers).retry_after == seconds
    theirs = SimpleNamespace(headers={name.title(): value for name, value in headers.items()})
    error: Any = Exception()
    error.body, error.response = {"code": "rate_limited", "message": "Wait."}, theirs
    found = to_wattfare_error(error)
    assert found is not None
    assert found.retry_after == seconds


# -- the helpers


BUDGET = WattfareBudgetExceededError("The cap is reached.")


def raised(function: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function()
    return caught.value


def by_cause() -> None:
    try:
        raise BUDGET
    except WattfareError as error:
        raise ValueError("the model failed") from error


def by_context() -> None:
    try:
        raise BUDGET
    except WattfareError:
        raise ValueError("the model failed")  # noqa: B904


def by_from_none() -> None:
    try:
        raise BUDGET
    except WattfareError:
        raise ValueError("another matter") from None


def deep() -> None:
    try:
        by_context()
    except ValueError as error:
        raise RuntimeError("the agent failed") from error


def in_a_group() -> None:
    inner = ExceptionGroup("inner", [KeyError("x"), raised(by_cause)])  # type: ignore[list-item]
    raise ExceptionGroup("outer", [ValueError("y"), inner])


async def in_a_task_group() -> None:
    async def fail() -> None:
        raise BUDGET

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


@pytest.mark.parametrize("function", [by_cause, by_context, deep, in_a_group])
def test_helpers_find_a_wrapped_error(function: Any) -> None:
    error = raised(function)
    assert to_wattfare_error(error) is BUDGET
    assert is_budget_exceeded(error)
    assert not is_not_connected(error)


def test_helpers_find_an_error_in_a_task_group() -> None:
    assert to_wattfare_error(raised(lambda: asyncio.run(in_a_task_group()))) is BUDGET


@pytest.mark.parametrize(
    "error", [None, ValueError("x"), KeyboardInterrupt(), ExceptionGroup("g", [ValueError()])]
)
def test_helpers_return_none_for_other_errors(error: Any) -> None:
    assert to_wattfare_error(error) is None
    assert not is_budget_exceeded(error)
    assert not is_not_connected(error)


def test_suppressed_error_is_not_found() -> None:
    assert to_wattfare_error(raised(by_from_none)) is None


def test_circular_causes_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    one.__context__, two.__context__ = one, two
    assert to_wattfare_error(one) is None


def test_needs_connection_for_each_error() -> None:
    for cls, _, _ in FAMILY:
        wanted = cls in (WattfareNotConnectedError, WattfareFundingError)
        assert is_not_connected(cls()) is wanted
        assert is_budget_exceeded(cls()) is (cls is WattfareBudgetExceededError)


@pytest.fixture
def service() -> Iterator[Wire]:
    with run_wire() as running:
        yield running


@pytest.mark.parametrize(("cls", "code", "status"), FAMILY)
@pytest.mark.parametrize("stream", [False, True])
def test_error_through_the_openai_package(
    service: Wire, cls: type[WattfareError], code: str, status: int, stream: bool
) -> None:
    service.then(error_answer(code, status or 502, "Because."))
    with openai.OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Hi"}]
        error = raised(
            lambda: client.chat.completions.create(model="m", messages=messages, stream=stream)
        )
    assert isinstance(error, openai.APIStatusError)
    found = to_wattfare_error(error)
    assert type(found) is cls
    assert (found.code, found.status, found.message) == (code, status or 502, "Because.")


def test_headers_through_the_openai_package(service: Wire) -> None:
    body = {"error": {"code": "rate_limited", "message": "x", "upstreamCode": "tpm_limit"}}
    headers = {"Retry-After": "7", "X-Request-Id": "r-1"}
    service.then(json_answer(body, 429, **headers))
    with openai.OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as client:
        error = raised(client.models.list)
    assert error.body["upstreamCode"] == "tpm_limit"  # type: ignore[attr-defined]
    found = to_wattfare_error(error)
    assert found is not None
    assert (found.retry_after, found.request_id) == (7, "r-1")
    assert found.upstream_code == "tpm_limit"
    assert found.to_wire() == body


def test_headers_come_from_the_cause(service: Wire) -> None:
    """The library's own error has the body. The error of the HTTP client below has the headers."""
    service.then(error_answer("rate_limited", 429, **{"Retry-After": "7", "X-Request-Id": "r-1"}))

    def fail() -> None:
        with http_client() as client:
            response = client.get(service.url)
        try:
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Wrapped(status_code=429, body=response.json()) from error

    found = to_wattfare_error(raised(fail))
    assert isinstance(found, WattfareRateLimitError)
    assert (found.retry_after, found.request_id) == (7, "r-1")


@pytest.mark.parametrize("headers", [None, 7, {"retry-after": 7}, {7: "x"}, {"X-Request-Id": "\n"}])
def test_invalid_headers_are_ignored(headers: Any) -> None:
    error = Wrapped(body=WIRE, response=Wrapped(headers=headers))
    found = to_wattfare_error(error)
    assert isinstance(found, WattfareBudgetExceededError)
    assert (found.retry_after, found.request_id) == (None, None)


@pytest.mark.parametrize(("cls", "code", "status"), FAMILY)
def test_error_event_in_a_stream_of_the_openai_package(
    service: Wire, cls: type[WattfareError], code: str, status: int
) -> None:
    about = {"code": code, "message": "Because.", "requestId": "r-1", "retryAfter": 7}
    error_event = event({"error": about})
    service.then(STREAM + piece(event(delta("one")) + error_event) + END)
    with openai.OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Hi"}]
        stream = client.chat.completions.create(model="m", messages=messages, stream=True)
        error = raised(lambda: list(stream))
    assert isinstance(error, openai.APIError)
    found = to_wattfare_error(error)
    assert type(found) is cls
    assert (found.code, found.status, found.message) == (code, status, "Because.")
    assert (found.request_id, found.retry_after) == ("r-1", 7)


def test_errors_of_openai_itself_are_not_ours(service: Wire) -> None:
    service.then(json_answer({"error": {"code": "insufficient_quota", "message": "no"}}, 429))
    service.then(json_answer({"error": {"code": 402, "message": "no"}}, 402))
    with openai.OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as client:
        for _ in range(2):
            error = raised(client.models.list)
            assert to_wattfare_error(error) is None


def test_error_through_httpx(service: Wire) -> None:
    service.then(error_answer("not_connected", 402)).then(error_answer("not_connected", 402))
    with http_client() as client:
        error = raised(client.get(service.url).raise_for_status)
        assert is_not_connected(error)
        with client.stream("GET", service.url) as unread:
            error = raised(unread.raise_for_status)
        assert to_wattfare_error(error) is None  # its body was not read, so there is none


class Wrapped(Exception):  # noqa: N818
    """An error of a library, with its format."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


class Odd(Exception):  # noqa: N818
    """An error whose attributes raise."""

    @property
    def response(self) -> Any:
        raise RuntimeError("there is none")

    @property
    def body(self) -> Any:
        raise RuntimeError("there is none")


WIRE = {"error": {"code": "budget_exceeded", "message": "x"}}


@pytest.mark.parametrize(
    "error",
    [
        Wrapped(status_code=402, body=WIRE),
        Wrapped(status_code=402, body=WIRE["error"]),
        Wrapped(status_code="402", body=b'{"error": {"code": "budget_exceeded"}}'),
        Wrapped(body='{"error": {"code": "budget_exceeded"}}'),
        Wrapped(body=bytearray(b'{"error": {"code": "budget_exceeded"}}')),
    ],
)
def test_errors_in_the_formats_of_libraries(error: Exception) -> None:
    found = to_wattfare_error(error)
    assert isinstance(found, WattfareBudgetExceededError)
    assert found.status == 402


@pytest.mark.parametrize(
    "error",
    [
        Wrapped(body=None),
        Wrapped(body=7, response=7),
        Wrapped(body={"error": None}),
        Wrapped(body={"error": "budget_exceeded"}),
        Wrapped(body={"error": {"code": ["budget_exceeded"]}}),
        Wrapped(body={"error": {"code": "unknown", "message": "?"}}),
        Wrapped(body={7: 8}),
        Wrapped(body=b"\xff"),
        Wrapped(body="\ud800"),
        Wrapped(body=[]),
        Odd(),
    ],
)
def test_foreign_errors_in_the_formats_of_libraries(error: Exception) -> None:
    assert to_wattfare_error(error) is None


def test_helpers_are_public() -> None:
    assert wattfare_mw.to_wattfare_error is to_wattfare_error


def refused(code: str, **headers: str) -> Exception:
    """An error of an AI library, with the body and headers of an answer."""
    error: Any = Exception(code)
    error.body = {"code": code, "message": "No."}
    error.response = SimpleNamespace(headers={k.replace("_", "-"): v for k, v in headers.items()})
    return error


def test_headers_of_another_call_do_not_count() -> None:
    """They belong to a sibling in a group, or to a call that a fallback tried first."""
    busy = refused("rate_limited", retry_after="17", x_request_id="other")
    broke = refused("budget_exceeded", x_request_id="own")

    def falls_back() -> None:
        try:
            raise busy
        except Exception:
            raise broke  # noqa: B904

    bare = refused("budget_exceeded")
    after_another = raised(falls_back)
    for error in (ExceptionGroup("two", [bare, busy]), after_another):
        found = to_wattfare_error(error)
        assert isinstance(found, WattfareBudgetExceededError)
        assert found.retry_after is None
        assert found.request_id in (None, "own")
    found = to_wattfare_error(ExceptionGroup("two", [busy, broke]))
    assert found is not None
    assert (found.code, found.retry_after, found.request_id) == ("rate_limited", 17, "other")


def test_group_of_many_errors_is_read_fast() -> None:
    many = [ValueError(number) for number in range(100_000)]
    began = time.process_time()
    assert to_wattfare_error(ExceptionGroup("many", [*many, BUDGET])) is BUDGET
    assert time.process_time() - began < 2
