"""The token path: the user, the cap, and the answers to errors."""

from __future__ import annotations

import asyncio
import logging
import socket
from decimal import Decimal
from typing import Any

import pytest
from support.clients import is_held_by_its_traceback
from support.drivers import TOKEN
from support.fake_wattfare import SECRET_KEY, SESSION

from wattfare_mw import RequestLimit, SessionRequest, WattfareBudgetExceededError, WattfareError
from wattfare_mw.middleware.base import Middleware


@pytest.mark.parametrize("body", [b"", b"{}", b"whatever", b"\xff" * 70_000])
def test_session_with_and_without_a_body(drive: Any, fake: Any, body: bytes) -> None:
    answer = drive().request("POST", TOKEN, {"content-type": "text/plain"}, body)
    assert answer.status == 200
    assert answer.json == SESSION
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert fake.next("/sessions").json == {"appUserId": "user_1"}


@pytest.mark.parametrize("user", ["ü ser/%41?&=", "😀", " a", "a" * 256, "\u2028\n\x01"])
def test_any_valid_user_id_is_sent_unchanged(drive: Any, fake: Any, user: str) -> None:
    assert drive(resolve_user=lambda _: user).request("POST", TOKEN).status == 200
    assert fake.next("/sessions").json == {"appUserId": user}


def test_anonymous_visitor_is_refused(drive: Any, fake: Any, caplog: Any) -> None:
    answer = drive(resolve_user=lambda request: None).request("POST", TOKEN)
    assert (answer.status, answer.code) == (401, "auth")
    assert not fake.exchanges
    assert not caplog.records  # this is no error, and the app's key is valid


@pytest.mark.parametrize("user", ["", 7.0, b"user", True, [], "a" * 257, "\ud800", "a\0", object()])
def test_invalid_user_id_is_the_apps_error(
    drive: Any, fake: Any, caplog: Any, user: object
) -> None:
    answer = drive(resolve_user=lambda request: user).request("POST", TOKEN)
    assert (answer.status, answer.code) == (500, "unknown")
    assert "user id" not in answer.json["error"]["message"]
    assert not fake.exchanges
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("resolve_user ")


async def _async_user(request: Any) -> str:
    await asyncio.sleep(0)
    return "async " + request.headers["x-who"]


class _CallableUser:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, request: Any) -> str:
        return "object " + request.headers["x-who"]


class _AsyncCallableUser:
    async def __call__(self, request: Any) -> str:
        return "async object " + request.headers["x-who"]


@pytest.mark.parametrize(
    ("resolve", "user"),
    [
        (lambda request: "sync " + request.headers["X-Who"], "sync me"),
        (_async_user, "async me"),
        (_CallableUser(), "object me"),
        (_AsyncCallableUser(), "async object me"),
        (lambda request: _async_user(request), "async me"),
    ],
)
def test_resolve_user_may_be_any_kind_of_function(
    drive: Any, fake: Any, resolve: Any, user: str
) -> None:
    assert drive(resolve_user=resolve).request("POST", TOKEN, {"x-who": "me"}).status == 200
    assert fake.next("/sessions").json == {"appUserId": user}


def test_request_that_resolve_user_gets(drive: Any, interface: str) -> None:
    seen: list[Any] = []
    driver = drive(resolve_user=lambda request: seen.append(request))
    fields = [("cookie", "a=1; b=x%20y"), ("cookie", "c=3"), ("x-a", "1"), ("X-A", "2")]
    driver.request("POST", TOKEN, fields, query="q=%C3%BC&q=2&e=")
    [request] = seen
    assert (request.method, request.path, request.client) == ("POST", TOKEN, "127.0.0.1")
    assert dict(request.cookies) == {"a": "1", "b": "x%20y", "c": "3"}
    assert dict(request.query) == {"q": "2", "e": ""}
    assert request.headers["X-a"] == "1, 2"
    if interface == "asgi":
        assert request.scope["path"] == TOKEN
        with pytest.raises(AttributeError, match="ASGI"):
            _ = request.environ
    else:
        assert request.environ["PATH_INFO"] == TOKEN
        with pytest.raises(AttributeError, match="WSGI"):
            _ = request.scope


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, StopIteration, OSError])
def test_error_of_the_app_reveals_nothing(drive: Any, caplog: Any, error: Any) -> None:
    def resolve_user(request: Any) -> str:
        raise error("the password is hunter2")

    answer = drive(resolve_user=resolve_user).request("POST", TOKEN, {"x-request-id": "r-1"})
    assert (answer.status, answer.code) == (500, "unknown")
    assert b"hunter2" not in answer.body
    assert not any("hunter2" in value for _, value in answer.fields)
    [record] = caplog.records
    assert record.name == "wattfare_mw"
    assert record.levelno == logging.ERROR
    assert "r-1" in record.getMessage()
    # The log has the whole error, with its line.
    assert "hunter2" in caplog.text
    assert "in resolve_user" in caplog.text


def test_error_for_the_framework_is_raised_unchanged(drive: Any, monkeypatch: Any) -> None:
    class AppsError(Exception):
        pass

    def resolve_user(request: Any) -> str:
        raise AppsError

    monkeypatch.setattr(Middleware, "let_through", (AppsError,))
    with pytest.raises(AppsError) as caught:
        drive(resolve_user=resolve_user).request("POST", TOKEN)
    assert not is_held_by_its_traceback(caught.value)


def test_wattfare_error_of_the_app_is_forwarded(drive: Any) -> None:
    def resolve_user(request: Any) -> str:
        raise WattfareBudgetExceededError("Not this month.")

    answer = drive(resolve_user=resolve_user).request("POST", TOKEN)
    assert (answer.status, answer.code) == (402, "budget_exceeded")
    assert answer.json["error"]["message"] == "Not this month."


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_request", 400),
        ("invalid_request", 422),
        ("not_connected", 402),
        ("auth", 401),
        ("unknown", 404),
    ],
)
def test_refusal_is_forwarded_unchanged(drive: Any, fake: Any, code: str, status: int) -> None:
    fake.script = lambda exchange: exchange.error(code, status, "Because.")
    answer = drive().request("POST", TOKEN)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["message"] == "Because."


def test_rate_limit_has_retry_after(once: Any, fake: Any) -> None:
    fake.script = lambda exchange: exchange.error("rate_limited", 429, retry_after="7")
    answer = once().request("POST", TOKEN)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "rate_limited", "7")


def test_unreachable_service_is_502(once: Any, caplog: Any) -> None:
    # Nothing listens on this port, and no other process can take it meanwhile.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answer = once(f"http://127.0.0.1:{taken.getsockname()[1]}").request("POST", TOKEN)
    assert (answer.status, answer.code) == (502, "network")
    [record] = caplog.records
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (lambda x: x.answer("<html>hi</html>", content_type="text/html"), 502, "unknown"),
        (
            lambda x: x.answer("<html>no</html>", status=503, content_type="text/html"),
            503,
            "upstream",
        ),
        (lambda x: x.answer("", status=302, headers={"location": "/login"}), 502, "unknown"),
        (lambda x: x.answer({"token": 7, "expiresAt": 1}), 502, "unknown"),
        (lambda x: x.answer({"token": "a"}), 502, "unknown"),
        (lambda x: x.answer('{"token": "a.b', status=200), 502, "unknown"),
        (
            lambda x: x.answer({"error": {"code": "teapot", "message": "T"}}, status=418),
            418,
            "unknown",
        ),
        (lambda x: x.answer({"error": "no"}, status=404), 404, "unknown"),
        (lambda x: x.reset(), 502, "network"),
        (
            lambda x: (x.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), x.hang_up()),
            502,
            "network",
        ),
        (lambda x: (x.send(b"ho ho ho\r\n\r\n"), x.hang_up()), 502, "network"),
    ],
)
def test_answer_outside_of_the_protocol_is_replaced(
    once: Any, fake: Any, script: Any, status: int, code: str
) -> None:
    fake.script = script
    answer = once().request("POST", TOKEN)
    assert (answer.status, answer.code) == (status, code)


def test_refused_app_key_is_explained_in_the_log(drive: Any, fake: Any, caplog: Any) -> None:
    # A service that repeats the key must not make us send it to the browser.
    fake.script = lambda x: x.error("auth", 401, f"The key {SECRET_KEY} is not known.")
    answer = drive().request("POST", TOKEN, {"x-request-id": "r-2"})
    assert (answer.status, answer.code) == (401, "auth")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "refused this app's secret key" in record.getMessage()
    assert "r-2" in record.getMessage()
    assert SECRET_KEY not in caplog.text
    assert SECRET_KEY.encode() not in answer.body


async def _async_limit(request: Any) -> Decimal:
    await asyncio.sleep(0)
    return Decimal("2.50")


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        (20, 20),
        (Decimal("0.01"), 0.01),
        (0, 0),
        (RequestLimit(5), 5),
        (SessionRequest(RequestLimit(6)), 6),
        (lambda request: 7, 7),
        (lambda request: RequestLimit(8), 8),
        (_async_limit, 2.5),
    ],
)
def test_cap_is_fixed_or_depends_on_the_request(
    drive: Any, fake: Any, limit: Any, sent: Any
) -> None:
    assert drive(request_limit=limit).request("POST", TOKEN).status == 200
    assert fake.next("/sessions").json["requestLimit"] == {"monthlyUsd": sent}


@pytest.mark.parametrize("limit", [None, lambda request: None, SessionRequest()])
def test_session_without_a_cap(drive: Any, fake: Any, limit: Any) -> None:
    assert drive(request_limit=limit).request("POST", TOKEN).status == 200
    assert fake.next("/sessions").json == {"appUserId": "user_1"}


NONSENSE = [-1, float("nan"), float("inf"), "20", True, object(), [], 10**10, Decimal("1e400")]


@pytest.mark.parametrize("limit", NONSENSE)
def test_cap_function_with_an_invalid_result_is_the_apps_error(
    drive: Any, fake: Any, caplog: Any, limit: Any
) -> None:
    answer = drive(request_limit=lambda request: limit).request("POST", TOKEN)
    assert (answer.status, answer.code) == (500, "unknown")
    assert not fake.exchanges
    [record] = caplog.records
    assert "request_limit did not return a valid cap" in record.getMessage()


@pytest.mark.parametrize("limit", NONSENSE)
def test_invalid_cap_raises_at_start(drive: Any, limit: Any) -> None:
    with pytest.raises((WattfareError, TypeError, ValueError)):
        drive(request_limit=limit)


def test_cap_function_gets_the_request(drive: Any, fake: Any) -> None:
    driver = drive(request_limit=lambda request: {"pro": 50, "free": 1}[request.headers["plan"]])
    for plan, cap in (("pro", 50), ("free", 1)):
        assert driver.request("POST", TOKEN, {"plan": plan}).status == 200
        assert fake.next("/sessions").json["requestLimit"] == {"monthlyUsd": cap}
    assert driver.request("POST", TOKEN, {"plan": "none"}).code == "unknown"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_are_refused(drive: Any, fake: Any, method: str) -> None:
    answer = drive().request(method, TOKEN)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert (answer.body == b"") == (method == "HEAD")
    assert not fake.exchanges
