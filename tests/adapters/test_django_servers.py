"""The Django adapter behind real servers: uvicorn, and a WSGI server with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.signals import request_finished
from django.test import override_settings
from django.utils.deprecation import MiddlewareMixin
from support.django_project import MIDDLEWARE
from support.fake_wattfare import (
    DONE,
    SECRET_KEY,
    Exchange,
    FakeWattfare,
    good,
    held,
    held_stream,
    word,
)
from support.rules import INFERENCE, ask
from support.servers import Visitor, uvicorn_server, werkzeug_server
from support.service import eventually

pytestmark = pytest.mark.usefixtures("project")
HERE = __name__
JSON = {"content-type": "application/json", "x-user": "u1"}


def by_header(request: Any) -> str | None:
    return request.headers.get("x-user")


@pytest.fixture(params=["asgi", "wsgi"])
def interface(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def visit(interface: str, fake: FakeWattfare) -> Iterator[Callable[..., Visitor]]:
    """``visit(HEARTBEAT=1)``: a client of the project, served with these options."""
    with ExitStack() as stack:

        def serve(middleware: list[str] | None = None, **options: Any) -> Visitor:
            from django.core.asgi import get_asgi_application
            from django.core.wsgi import get_wsgi_application

            wattfare = {
                "SECRET_KEY": SECRET_KEY,
                "BASE_URL": fake.url,
                "RESOLVE_USER": by_header,
                **options,
            }
            stack.enter_context(
                override_settings(WATTFARE=wattfare, MIDDLEWARE=middleware or MIDDLEWARE)
            )
            if interface == "asgi":
                server = uvicorn_server(get_asgi_application(), lifespan="off")
            else:
                server = werkzeug_server(get_wsgi_application())
            address = stack.enter_context(server)
            stack.callback(fake.close_all)  # otherwise, a failed test waits for its server

            def visitor() -> Visitor:
                made = Visitor(address)
                stack.callback(made.leave)
                return made

            serve.again = visitor  # type: ignore[attr-defined]
            return visitor()

        yield serve


@pytest.fixture
def finished() -> Iterator[list[Any]]:
    """The received `request_finished` signals."""
    seen: list[Any] = []

    def receive(**_sent: Any) -> None:
        seen.append(threading.current_thread())

    request_finished.connect(receive)
    yield seen
    request_finished.disconnect(receive)


def stream(visitor: Visitor, **headers: str) -> None:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    visitor.ask("POST", INFERENCE, {**JSON, **more}, ask(stream=True).encode())


GZIP = "django.middleware.gzip.GZipMiddleware"


class OldMiddleware:
    """Sync middleware, which Django runs in a thread under ASGI."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)


@pytest.mark.parametrize(
    "middleware",
    [
        MIDDLEWARE,
        [GZIP, *MIDDLEWARE],
        [*MIDDLEWARE, f"{HERE}.OldMiddleware"],
        [f"{HERE}.OldMiddleware", *MIDDLEWARE],
    ],
    ids=["plain", "gzip", "synchronous behind", "synchronous before"],
)
def test_events_arrive_one_by_one(
    middleware: list[str], visit: Any, fake: FakeWattfare, finished: list[Any]
) -> None:
    fake.script = held_stream
    visitor = visit(middleware)
    stream(visitor, accept_encoding="gzip", connection="close")
    exchange = fake.next()
    for text in ("one ", "two "):
        exchange.chunk(word(text))
        visitor.wait_for(f'"{text}"'.encode())
    exchange.chunk(DONE)
    exchange.end()
    assert b"data: [DONE]\n\n" in visitor.rest()
    eventually(lambda: len(finished) == 1)


def send_until_gone(exchange: Exchange, interface: str) -> None:
    """Sends events until the server notices: under WSGI, it learns of a disconnect at the next
    event."""
    if interface == "asgi":
        exchange.wait_gone()
        return

    def gone() -> bool:
        exchange.chunk(word("more"))
        return exchange.gone.is_set()

    eventually(gone)


def test_disconnect_within_a_stream_ends_the_call(
    visit: Any, fake: FakeWattfare, interface: str, finished: list[Any]
) -> None:
    fake.script = held_stream
    used: list[Any] = []
    visitor = visit(MAX_CALLS_PER_USER=1, ON_USAGE=lambda *usage: used.append(usage))
    stream(visitor)
    exchange = fake.next()
    exchange.chunk(word("one"))
    visitor.wait_for(b'"one"')
    visitor.leave(reset=True)
    send_until_gone(exchange, interface)
    eventually(lambda: used and finished)
    # The call no longer counts.
    other = visit.again()
    stream(other)
    exchange = fake.next()
    exchange.chunk(word("two") + DONE)
    exchange.end()
    other.wait_for(b"[DONE]")
    eventually(lambda: len(used) == 2)


@pytest.mark.parametrize("interface", ["asgi"], indirect=True)  # WSGI does not report it
def test_disconnect_before_the_answer(visit: Any, fake: FakeWattfare) -> None:
    fake.script = held
    visitor = visit(MAX_CALLS_PER_USER=1)
    for _ in range(2):
        visitor.ask("POST", INFERENCE, JSON, ask().encode())
        exchange = fake.next()
        visitor.leave(reset=True)
        exchange.wait_gone()
        visitor = visit.again()


@pytest.mark.parametrize("interface", ["asgi"], indirect=True)  # WSGI waits in the thread
def test_silent_stream_gets_comments(visit: Any, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = visit(HEARTBEAT=0.05)
    stream(visitor, connection="close")
    exchange = fake.next()
    visitor.wait_for(b": wattfare\n\n")
    exchange.chunk(word("one"))
    visitor.wait_for(b'"one"')
    exchange.chunk(DONE)
    exchange.end()
    visitor.rest()


def test_broken_stream_ends_with_an_error(visit: Any, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = visit()
    stream(visitor, connection="close")
    exchange = fake.next()
    exchange.chunk(word("one"))
    visitor.wait_for(b'"one"')
    exchange.hang_up()
    rest = visitor.rest()
    assert b'"code":"upstream"' in rest
    assert b"[DONE]" not in rest


def chunked(visitor: Visitor, body: bytes, path: str = INFERENCE) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in JSON.items())
    head = f"POST {path} HTTP/1.1\r\nhost: testserver\r\nconnection: close\r\n{fields}"
    visitor.send(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    for start in range(0, len(body), 65536):
        piece = body[start : start + 65536]
        visitor.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    visitor.send(b"0\r\n\r\n")


class Reads(MiddlewareMixin):
    def process_request(self, request: Any) -> None:
        assert request.read()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_chunked_body_is_read(size: int, visit: Any, fake: FakeWattfare) -> None:
    body = ask(user="x" * size).encode()
    visitor = visit()
    chunked(visitor, body)
    assert visitor.rest().startswith(b"HTTP/1.1 200")
    assert fake.next().body == body


def test_too_large_chunked_body_is_refused(visit: Any, fake: FakeWattfare) -> None:
    visitor = visit(MAX_BODY_BYTES=100_000)
    chunked(visitor, ask(user="x" * 120_000).encode())
    assert visitor.wait_for(b'"invalid_request"').startswith(b"HTTP/1.1 413")
    assert not fake.exchanges


def test_stream_whose_body_other_middleware_has_read(
    visit: Any, fake: FakeWattfare, interface: str
) -> None:
    """Under ASGI, Django keeps the body in a file, which can be read again."""
    visitor = visit([f"{HERE}.Reads", *MIDDLEWARE])
    visitor.ask("POST", INFERENCE, {**JSON, "connection": "close"}, ask().encode())
    status = visitor.rest().split(b" ")[1]
    assert status == (b"200" if interface == "asgi" else b"500")


class FailsBehind:
    """Middleware whose own code fails after the answer is ready."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        self.get_response(request)
        raise ZeroDivisionError


def test_stream_dropped_by_other_middleware_is_closed(
    visit: Any, fake: FakeWattfare, interface: str
) -> None:
    fake.script = held_stream
    visitor = visit([f"{HERE}.FailsBehind", *MIDDLEWARE], MAX_CALLS_PER_USER=1)
    for _ in range(2):
        stream(visitor, connection="close")
        exchange = fake.next()
        assert visitor.rest().startswith(b"HTTP/1.1 500")
        exchange.wait_gone()
        visitor = visit.again()


def test_slow_call_does_not_delay_other_requests(visit: Any, fake: FakeWattfare) -> None:
    fake.script = held
    first, second = visit(), visit.again()
    first.ask("POST", INFERENCE, {**JSON, "connection": "close"}, ask().encode())
    slow = fake.next()
    fake.script = good
    second.ask("POST", INFERENCE, {**JSON, "x-user": "u2", "connection": "close"}, ask().encode())
    assert second.rest().startswith(b"HTTP/1.1 200")
    good(slow)
    assert first.rest().startswith(b"HTTP/1.1 200")
