"""How much of a request's body is read: all of it, up to the limit."""

from __future__ import annotations

import asyncio
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from support.drivers import (
    INFERENCE,
    JSON,
    TOKEN,
    ASGIDriver,
    WSGIDriver,
    body_of,
    environ_of,
    scope_of,
)
from support.drivers import asgi_app as _app
from support.fake_wattfare import SECRET_KEY, FakeWattfare

from wattfare_mw.body_memory import MAX_PAYER_BYTES
from wattfare_mw.middleware.wsgi import PIECE_BYTES, read_up_to
from wattfare_mw.receiving import read_body

Start = Callable[..., Any]


class Input(io.RawIOBase):
    """A request's body as it arrives from a socket: in pieces, counted."""

    def __init__(self, data: bytes, piece: int = 7) -> None:
        self.data = data
        self.piece = piece
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(self.piece, len(buffer), len(self.data) - self.given)
        buffer[:size] = self.data[self.given : self.given + size]
        self.given += size
        return size


@pytest.fixture
def asgi(fake: FakeWattfare) -> Any:
    driver = ASGIDriver(
        resolve_user=lambda request: "user_1",
        secret_key=SECRET_KEY,
        base_url=fake.url,
        max_body_bytes=100,
    )
    yield driver
    driver.close()


@pytest.fixture
def wsgi(fake: FakeWattfare) -> Any:
    driver = WSGIDriver(
        resolve_user=lambda request: "user_1",
        secret_key=SECRET_KEY,
        base_url=fake.url,
        max_body_bytes=100,
    )
    yield driver
    driver.close()


def ask_asgi(driver: ASGIDriver, headers: Any, messages: list[Any], path: str = INFERENCE) -> Any:
    """Returns the status and the unread messages."""
    sent: list[Any] = []
    left = list(messages)

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    driver.loop.run(driver.middleware(scope_of("POST", path, headers), receive, send))
    return sent[0]["status"], left


def parts(*bodies: bytes) -> list[Any]:
    last = len(bodies) - 1
    return [
        {"type": "http.request", "body": body, "more_body": number < last}
        for number, body in enumerate(bodies)
    ]


def test_asgi_declared_too_large_body_is_not_read(asgi: Any, fake: FakeWattfare) -> None:
    for length in ("101", "100000000000000000000000000", "9" * 5000):
        status, left = ask_asgi(asgi, {**JSON, "content-length": length}, parts(b"x" * 101))
        assert status == 413
        assert len(left) == 1
    assert not fake.exchanges


def test_asgi_undeclared_body_is_read_up_to_the_limit(asgi: Any, fake: FakeWattfare) -> None:
    status, left = ask_asgi(asgi, JSON, parts(b"x" * 60, b"x" * 40, b"x", b"x" * 1000))
    assert status == 413
    assert len(left) == 1
    assert not fake.exchanges


def test_asgi_body_in_pieces_is_read(asgi: Any, fake: FakeWattfare) -> None:
    body = body_of()
    status, _ = ask_asgi(asgi, JSON, parts(*[body[i : i + 1] for i in range(len(body))], b""))
    assert status == 200
    assert fake.next().body == body


def test_asgi_message_may_omit_fields(asgi: Any, fake: FakeWattfare) -> None:
    body = body_of()
    messages = [{"type": "http.request", "more_body": True}, {"type": "http.request", "body": body}]
    assert ask_asgi(asgi, JSON, messages) == (200, [])
    assert fake.next().body == body


def test_asgi_client_disconnects_within_its_body(asgi: Any, fake: FakeWattfare) -> None:
    messages = [*parts(b"{", b"}")[:1], {"type": "http.disconnect"}]
    status, left = ask_asgi(asgi, {**JSON, "content-length": "2"}, messages)
    assert status == 400
    assert not left
    assert not fake.exchanges


def test_asgi_token_path_reads_no_body(asgi: Any) -> None:
    driver = ASGIDriver(resolve_user=lambda r: None, secret_key=SECRET_KEY, app=_app)
    status, left = ask_asgi(driver, {"content-length": "5"}, parts(b"12345"), TOKEN)
    assert status == 401
    assert len(left) == 1
    driver.close()


def ask_wsgi(driver: WSGIDriver, headers: Any, body: Any, **more: Any) -> int:
    environ = environ_of("POST", INFERENCE, headers, **{"wsgi.input": body}, **more)
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)

    result = driver.middleware(environ, start_response)
    list(result)
    if hasattr(result, "close"):
        result.close()
    return int(statuses[0][:3])


def test_wsgi_declared_too_large_body_is_not_read(wsgi: Any, fake: FakeWattfare) -> None:
    for length in ("101", "100000000000000000000000000", "9" * 5000):
        body = Input(b"x" * 200)
        assert ask_wsgi(wsgi, {**JSON, "content-length": length}, body) == 413
        assert body.given == 0
    assert not fake.exchanges


def test_wsgi_undeclared_body_is_read_up_to_the_limit(wsgi: Any, fake: FakeWattfare) -> None:
    body = Input(b"x" * 10_000)
    assert ask_wsgi(wsgi, JSON, body, **{"wsgi.input_terminated": True}) == 413
    assert body.given <= 101 + body.piece
    assert not fake.exchanges


def test_wsgi_undeclared_body_takes_bounded_memory(fake: FakeWattfare) -> None:
    """The second body of a user is refused when it is too large, not after its end."""
    driver = WSGIDriver(
        resolve_user=lambda request: "user_1", secret_key=SECRET_KEY, base_url=fake.url
    )
    claim = driver.middleware._gate._bodies.claim("user_1")
    claim.grow(MAX_PAYER_BYTES - 2 * PIECE_BYTES)
    body = Input(b"x" * 20 * PIECE_BYTES, 10 * PIECE_BYTES)
    assert ask_wsgi(driver, JSON, body, **{"wsgi.input_terminated": True}) == 503
    assert body.given == 3 * PIECE_BYTES
    claim.release()
    driver.close()
    assert not fake.exchanges


@pytest.mark.parametrize("is_async", [False, True])
def test_tiny_pieces_take_no_more_memory_than_large_ones(is_async: bool) -> None:
    pieces = iter([b"%02d" % (number % 100) for number in range(200_000)])

    async def receive() -> dict[str, Any]:
        piece = next(pieces, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    tracemalloc.start()
    try:
        if is_async:
            body = asyncio.run(read_body(receive, 800_000, AssertionError))
        else:
            body = read_up_to(800_000, lambda size: next(pieces, b""))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(body) == 400_000
    # One object for each piece would take 45 times the body. The margin is for other threads.
    assert peak < 10 * len(body)


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("length", [False, True])
def test_wsgi_body_in_pieces_is_read(
    wsgi: Any, fake: FakeWattfare, piece: int, buffered: bool, length: bool
) -> None:
    body = body_of()
    stream: Any = Input(body, piece)
    if buffered:
        stream = io.BufferedReader(stream)
    headers = {**JSON, "content-length": str(len(body))} if length else JSON
    assert ask_wsgi(wsgi, headers, stream, **{"wsgi.input_terminated": not length}) == 200
    assert fake.next().body == body


def test_wsgi_reads_no_more_than_the_declared_length(wsgi: Any, fake: FakeWattfare) -> None:
    body = body_of()
    stream = Input(body + b"GET / HTTP/1.1\r\n", 1000)
    assert ask_wsgi(wsgi, {**JSON, "content-length": str(len(body))}, stream) == 200
    assert fake.next().body == body
    assert stream.given == len(body)


def test_wsgi_request_without_length_or_end_has_no_body(wsgi: Any, fake: FakeWattfare) -> None:
    stream = Input(body_of())  # a server that does not end the input would make us wait forever
    assert ask_wsgi(wsgi, JSON, stream) == 400
    assert stream.given == 0


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "+5", "", " ", "0x10", "1_0"])
def test_wsgi_invalid_length_is_refused(wsgi: Any, fake: FakeWattfare, length: str) -> None:
    stream = Input(body_of())
    assert ask_wsgi(wsgi, {**JSON, "content-length": length}, stream) == 400


def test_wsgi_client_disconnects_within_its_body(wsgi: Any, fake: FakeWattfare) -> None:
    body = body_of()
    stream = Input(body[:-1])
    assert ask_wsgi(wsgi, {**JSON, "content-length": str(len(body))}, stream) == 400
    assert not fake.exchanges


def test_wsgi_connection_breaks_within_its_body(wsgi: Any, fake: FakeWattfare) -> None:
    class Broken(Input):
        def readinto(self, buffer: Any) -> int:
            raise ConnectionResetError

    for stream in (Broken(b""), io.BufferedReader(Broken(b""))):
        assert ask_wsgi(wsgi, {**JSON, "content-length": "9"}, stream) == 400
    assert not fake.exchanges
