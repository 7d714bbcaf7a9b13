"""WSGI's rules for a middleware: both validators of the specification, threads, forks and async
functions."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import warnings
from typing import Any
from wsgiref.validate import validator

import pytest
from support.drivers import (
    INFERENCE,
    JSON,
    MODELS,
    STATUS,
    TOKEN,
    Drive,
    body_of,
    environ_of,
    with_length,
)
from support.drivers import wsgi_app as _wsgi_app
from support.fake_wattfare import DONE, SECRET_KEY, FakeWattfare, word
from support.patience import PATIENCE
from werkzeug.middleware.lint import LintMiddleware

from wattfare_mw import Wattfare, WattfareMiddleware

wsgi_only = pytest.mark.parametrize("interface", ["wsgi"], indirect=True)
REQUESTS = [
    ("POST", TOKEN, {}, b"", 200),
    ("POST", TOKEN, JSON, b"{}", 200),
    ("POST", INFERENCE, JSON, body_of(), 200),
    ("POST", INFERENCE, JSON, body_of(stream=True), 200),
    ("POST", INFERENCE, JSON, b"{", 400),
    ("POST", INFERENCE, {"content-type": "text/plain"}, b"x", 415),
    ("POST", INFERENCE, {**JSON, "sec-fetch-site": "cross-site"}, b"{}", 403),
    ("PUT", INFERENCE, {}, b"", 405),
    (
        "OPTIONS",
        INFERENCE,
        {"origin": "https://a.b", "access-control-request-method": "POST"},
        b"",
        204,
    ),
    ("GET", STATUS, {}, b"", 200),
    ("HEAD", STATUS, {}, b"", 200),
    ("HEAD", MODELS, {}, b"", 200),
    ("HEAD", TOKEN, {}, b"", 405),
    ("GET", MODELS, {}, b"", 200),
    ("GET", "/page", {}, b"", 200),
    ("POST", "/page", JSON, b"x", 200),
]


def start_with(answer: list[Any]) -> Any:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        answer.append(int(status[:3]))
        return lambda data: None

    return start_response


@pytest.mark.parametrize("validator_class", [validator, LintMiddleware])
@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), REQUESTS)
def test_validators_find_no_fault(
    fake: FakeWattfare,
    validator_class: Any,
    method: str,
    path: str,
    headers: Any,
    body: bytes,
    status: int,
) -> None:
    """One validator around the middleware and one inside it: their warnings are errors here."""
    # werkzeug's validator expects a length in a 204, which RFC 9110, 8.6 forbids, and compares the
    # length in a HEAD response with its empty body.
    if status == 204:
        warnings.filterwarnings("ignore", "204 responses must have an empty content length")
    if method == "HEAD":
        warnings.filterwarnings("ignore", "Content-Length and the number of bytes sent")
    middleware: Any = WattfareMiddleware(
        validator_class(_wsgi_app),
        interface="wsgi",
        resolve_user=lambda request: "user_1",
        secret_key=SECRET_KEY,
        base_url=fake.url,
        allowed_origins=["https://a.b"],
    )
    environ = environ_of(method, path, with_length(headers, body), body)
    got: list[Any] = []
    result = validator_class(middleware)(environ, start_with(got))
    content = b"".join(result)
    result.close()
    assert got == [status]
    assert (content == b"") == (method in ("HEAD", "OPTIONS"))
    middleware.close()


@pytest.mark.parametrize("validator_class", [validator, LintMiddleware])
def test_validators_find_no_fault_in_a_broken_stream(
    fake: FakeWattfare, validator_class: Any
) -> None:
    fake.script = lambda x: x.stream(word("one"), b"data: half")
    middleware: Any = WattfareMiddleware(
        _wsgi_app, resolve_user=lambda r: "u", secret_key=SECRET_KEY, base_url=fake.url
    )
    body = body_of(stream=True)
    got: list[Any] = []
    environ = environ_of("POST", INFERENCE, with_length(JSON, body), body)
    result = validator_class(middleware)(environ, start_with(got))
    assert b"broke off" in b"".join(result)
    result.close()
    middleware.close()


@wsgi_only
def test_threads_share_one_middleware(drive: Drive, fake: FakeWattfare) -> None:
    """Even the first requests, which create the pool, run at once."""
    driver = drive(resolve_user=lambda request: request.headers["x-me"])
    together = threading.Barrier(16)
    answers: dict[int, list[Any]] = {}

    def visit(number: int) -> None:
        together.wait(PATIENCE)
        headers = {**JSON, "x-me": f"user {number}", "x-request-id": f"r-{number}"}
        answers[number] = [
            driver.request("POST", INFERENCE, headers, body_of(stream=bool(turn % 2)))
            for turn in range(6)
        ]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(answers) == 16
    for number, got in answers.items():
        assert {answer.headers["x-request-id"] for answer in got} == {f"r-{number}"}
        assert {answer.status for answer in got} == {200}
    for exchange in fake.exchanges:
        assert exchange.headers["x-request-id"] == f"r-{(exchange.user or '')[5:]}"
    assert len(fake.exchanges) == 96


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@wsgi_only
def test_forked_worker_has_its_own_connections(drive: Drive, fake: FakeWattfare) -> None:
    """As under --preload, after the parent has made a call."""
    driver = drive()
    assert driver.request("POST", TOKEN).status == 200
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(driver.request("POST", TOKEN).status != 200)
            driver.middleware.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert driver.request("POST", TOKEN).status == 200
    parent, forked, again = fake.exchanges
    assert parent.writer is again.writer
    assert forked.writer is not parent.writer
    assert not parent.closed.is_set()


_who: contextvars.ContextVar[str] = contextvars.ContextVar("_who")


async def _async_who(request: Any) -> str:
    await asyncio.sleep(0)
    return _who.get()


@pytest.mark.parametrize("resolve_user", [lambda request: _who.get(), _async_who])
def test_functions_see_the_context_variables_of_the_call(
    interface: str, drive: Drive, fake: FakeWattfare, resolve_user: Any
) -> None:
    """The app's own middleware often sets a context variable."""
    driver: Any = drive(resolve_user=resolve_user)
    inner = driver.middleware
    if interface == "asgi":

        async def around(scope: Any, receive: Any, send: Any) -> None:
            _who.set(dict(scope["headers"])[b"x-me"].decode())
            await inner(scope, receive, send)

        driver.middleware = around
    else:

        def around_wsgi(environ: Any, start_response: Any) -> Any:
            _who.set(environ["HTTP_X_ME"])
            return inner(environ, start_response)

        driver.wrapped = around_wsgi
    try:
        for me in ("one", "two"):
            assert driver.request("POST", TOKEN, {"x-me": me}).status == 200
            assert fake.next("/sessions").json == {"appUserId": me}
    finally:
        driver.middleware = inner


def test_sync_functions_run_concurrently(fake: FakeWattfare) -> None:
    """Under ASGI, each runs in a thread, two at the same time."""
    from support.drivers import ASGIDriver

    together = threading.Barrier(2)

    def resolve_user(request: Any) -> str:
        together.wait(PATIENCE)
        return "user_1"

    driver = ASGIDriver(resolve_user=resolve_user, secret_key=SECRET_KEY, base_url=fake.url)
    lives = [driver.open("POST", TOKEN) for _ in range(2)]
    assert [live.answered().status for live in lives] == [200, 200]
    driver.close()


@wsgi_only
def test_async_function_within_a_running_loop(fake: FakeWattfare, drive: Drive) -> None:
    """A coroutine calls the WSGI app, as an async test does."""
    driver: Any = drive(resolve_user=_async_who)
    _who.set("me")

    async def main() -> list[Any]:
        got: list[Any] = []
        b"".join(driver.middleware(environ_of("POST", TOKEN, {}), start_with(got)))
        return got

    assert asyncio.run(main()) == [200]


@wsgi_only
def test_stream_may_be_iterated_in_another_thread(drive: Drive, fake: FakeWattfare) -> None:
    """Servers with a pool of writer threads do this."""
    driver: Any = drive()
    body = body_of(stream=True)
    environ = environ_of("POST", INFERENCE, with_length(JSON, body), body)
    fake.script = lambda x: x.stream(word("one"), DONE)
    result = driver.middleware(environ, start_with([]))
    parts: list[bytes] = []

    def read() -> None:
        parts.extend(result)
        result.close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(PATIENCE)
    assert b"".join(parts) == word("one") + DONE


@wsgi_only
def test_one_client_serves_two_middlewares(drive: Drive, fake: FakeWattfare) -> None:
    with Wattfare(SECRET_KEY, base_url=fake.url) as client:
        first, second = drive(client=client), drive(client=client)
        assert {d.request("POST", TOKEN).status for d in (first, second)} == {200}
        assert len({id(exchange.writer) for exchange in fake.exchanges}) == 1
