"""Real servers around the middleware, and real connections that break."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.drivers import INFERENCE, JSON, TOKEN, asgi_app, body_of
from support.drivers import wsgi_app as _wsgi_app
from support.fake_wattfare import DONE, SECRET_KEY, FakeWattfare, held, held_stream, word
from support.http_client import http_client
from support.patience import PATIENCE
from support.servers import (
    Visitor,
    granian_server,
    gunicorn_server,
    hypercorn_server,
    uvicorn_server,
    werkzeug_server,
)

from wattfare_mw import WattfareMiddleware

STREAM = body_of(stream=True)
ME = {**JSON, "x-me": "user_1"}

Connect = Callable[[], Visitor]


def options(fake: FakeWattfare) -> dict[str, Any]:
    return {
        "resolve_user": lambda request: request.headers.get("x-me"),
        "secret_key": SECRET_KEY,
        "base_url": fake.url,
    }


def environment(fake: FakeWattfare) -> dict[str, str]:
    return {"WATTFARE_SECRET_KEY": SECRET_KEY, "WATTFARE_BASE_URL": fake.url}


@contextmanager
def serving(name: str, fake: FakeWattfare, directory: Path) -> Iterator[Any]:
    """Yields the address of a server around the middleware."""
    match name:
        case "uvicorn-h11" | "uvicorn-httptools":
            app = WattfareMiddleware(asgi_app, **options(fake))
            server: Any = uvicorn_server(app, http=name.partition("-")[2])
        case "hypercorn":
            app = WattfareMiddleware(asgi_app, **options(fake))
            server = hypercorn_server(app)
        case "granian":
            app_name = "support.middleware_app:asgi"
            server = granian_server(app_name, directory, env=environment(fake))
        case "werkzeug":
            wsgi: Any = WattfareMiddleware(_wsgi_app, **options(fake))
            server = werkzeug_server(wsgi)
        case _:
            arguments = {
                "gunicorn-sync": ["--worker-class", "sync"],
                "gunicorn-gthread": ["--worker-class", "gthread", "--threads", "8"],
                "gunicorn-preload": ["--worker-class", "gthread", "--threads", "8", "--preload"],
            }[name]
            app_name = "support.middleware_app:wsgi"
            server = gunicorn_server(app_name, *arguments, env=environment(fake))
    with server as address:
        yield address
    if name == "werkzeug":
        wsgi.close()


ASGI = ["uvicorn-h11", "hypercorn", "granian"]
WSGI = ["werkzeug", "gunicorn-sync", "gunicorn-gthread", "gunicorn-preload"]


@pytest.fixture(scope="module")
def servers(_fake: FakeWattfare, tmp_path_factory: Any) -> Iterator[Callable[[str], Any]]:
    """Each server, started at its first use."""
    running: dict[str, tuple[Any, Any]] = {}

    def address_of(name: str) -> Any:
        if name not in running:
            server = serving(name, _fake, tmp_path_factory.mktemp("s"))
            running[name] = (server, server.__enter__())
        return running[name][1]

    yield address_of
    for server, _ in running.values():
        server.__exit__(None, None, None)


@pytest.fixture(params=[*ASGI, *WSGI])
def connect(request: Any, servers: Any, fake: FakeWattfare) -> Connect:
    return lambda: Visitor(servers(request.param))


@pytest.fixture(params=ASGI)
def connect_asgi(request: Any, servers: Any, fake: FakeWattfare) -> Connect:
    return lambda: Visitor(servers(request.param))


@pytest.fixture(params=WSGI)
def connect_wsgi(request: Any, servers: Any, fake: FakeWattfare) -> Connect:
    return lambda: Visitor(servers(request.param))


def test_each_event_arrives_before_the_next_is_sent(connect: Connect, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = connect()
    visitor.ask("POST", INFERENCE, {**ME, "connection": "close"}, STREAM)
    exchange = fake.next()
    assert exchange.user == "user_1"
    for text in ("one", "zwei ü", "three"):
        exchange.chunk(word(text))
        visitor.wait_for(word(text))
    exchange.chunk(DONE)
    exchange.end()
    answer = visitor.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"cache-control: no-store" in head.lower()
    assert b"x-accel-buffering: no" in head.lower()
    assert b"text/event-stream" in head.lower()
    assert DONE in body
    assert b"error" not in body


def test_json_and_errors_arrive(connect: Connect, fake: FakeWattfare) -> None:
    for method, path, headers, body, status, part in (
        ("POST", TOKEN, ME, b"", b"200", b'"token":"a.b.c"'),
        ("POST", TOKEN, JSON, b"", b"401", b'"code":"auth"'),
        ("PUT", TOKEN, ME, b"", b"405", b'"code":"invalid_request"'),
        ("POST", INFERENCE, ME, body_of(), b"200", b"one two"),
        ("POST", INFERENCE, {"x-me": "u"}, body_of(), b"415", b'"code":"invalid_request"'),
        ("POST", INFERENCE, ME, b"{", b"400", b'"code":"invalid_request"'),
        ("GET", "/page", {}, b"", b"200", b"the app: /page"),
    ):
        visitor = connect()
        visitor.ask(method, path, {**headers, "connection": "close"}, body)
        answer = visitor.rest()
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert part in answer


def test_chunked_body_is_read(connect: Connect, fake: FakeWattfare) -> None:
    visitor = connect()
    body = body_of()
    pieces = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in ME.items())
    visitor.send(
        f"POST {INFERENCE} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{head}"
        "transfer-encoding: chunked\r\n\r\n".encode()
        + pieces
        + b"0\r\n\r\n"
    )
    assert visitor.rest().startswith(b"HTTP/1.1 200 ")
    assert fake.next().body == body


def test_stream_that_breaks_ends_with_an_error(connect: Connect, fake: FakeWattfare) -> None:
    fake.script = held_stream
    visitor = connect()
    visitor.ask("POST", INFERENCE, {**ME, "connection": "close"}, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one") + b"data: half")
    visitor.wait_for(word("one"))
    exchange.reset()
    answer = visitor.rest()
    assert b"half" not in answer
    assert b'data: {"error":{"code":"upstream"' in answer
    assert DONE not in answer


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("body", [body_of(), STREAM])
def test_asgi_client_disconnects_before_the_first_byte(
    connect_asgi: Connect, fake: FakeWattfare, body: bytes, reset: bool
) -> None:
    fake.script = held
    visitor = connect_asgi()
    visitor.ask("POST", INFERENCE, ME, body)
    exchange = fake.next()
    visitor.leave(reset=reset)
    exchange.wait_gone()


@pytest.mark.parametrize("reset", [False, True])
def test_asgi_client_disconnects_within_a_stream(
    connect_asgi: Connect, fake: FakeWattfare, reset: bool
) -> None:
    fake.script = held_stream
    visitor = connect_asgi()
    visitor.ask("POST", INFERENCE, ME, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one"))
    visitor.wait_for(word("one"))
    visitor.leave(reset=reset)
    exchange.wait_gone()  # although nothing more is sent


@pytest.mark.parametrize("reset", [False, True])
def test_wsgi_client_disconnects_within_a_stream(
    connect_wsgi: Connect, fake: FakeWattfare, reset: bool
) -> None:
    fake.script = held_stream
    visitor = connect_wsgi()
    visitor.ask("POST", INFERENCE, ME, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one"))
    visitor.wait_for(word("one"))
    visitor.leave(reset=reset)
    # The server notices at a write: the first write may still succeed.
    for _ in range(200):
        exchange.chunk(word("two"))
        if exchange.gone.wait(0.02):
            break
    exchange.wait_gone()


@pytest.mark.parametrize("name", ["uvicorn-h11", "hypercorn", "granian", "gunicorn-gthread"])
def test_keep_alive_continues_after_a_stream(name: str, servers: Any, fake: FakeWattfare) -> None:
    """Watching for a disconnect takes nothing of the client's next request."""
    visitor = Visitor(servers(name))
    for _ in range(3):
        visitor.ask("POST", INFERENCE, ME, STREAM)
        visitor.wait_for(DONE + b"\r\n0\r\n\r\n")
        visitor.forget()
    visitor.leave()
    assert len(fake.exchanges) == 3


@pytest.mark.parametrize("name", ["uvicorn-h11", "hypercorn", "granian", "gunicorn-gthread"])
def test_slow_reader_slows_the_service(name: str, servers: Any, fake: FakeWattfare) -> None:
    """Unread data is not buffered here. If the client disconnects, the call is closed."""
    fake.script = held_stream
    visitor = Visitor(servers(name))
    visitor.ask("POST", INFERENCE, ME, STREAM)
    exchange = fake.next()
    one = word("x" * 100_000)
    for _ in range(600):
        exchange.chunk(one)
    visitor.wait_for(b"data: ")
    exchange.gone.wait(1)  # enough time to read everything
    assert exchange.writer.transport.get_write_buffer_size() > 20_000_000
    visitor.leave()
    exchange.wait_gone()


def test_stopping_server_closes_its_calls(fake: FakeWattfare) -> None:
    fake.script = held_stream
    app: Any = WattfareMiddleware(asgi_app, **options(fake))
    with uvicorn_server(app, timeout_graceful_shutdown=0) as address:
        visitor = Visitor(address)
        visitor.ask("POST", INFERENCE, ME, STREAM)
        exchange = fake.next()
        exchange.chunk(word("one"))
        visitor.wait_for(word("one"))
    exchange.wait_gone()
    visitor.leave()


def test_stopped_server_has_closed_its_connections(fake: FakeWattfare) -> None:
    app: Any = WattfareMiddleware(asgi_app, **options(fake))
    with uvicorn_server(app) as address:
        visitor = Visitor(address)
        visitor.ask("POST", TOKEN, {**ME, "connection": "close"})
        assert b"a.b.c" in visitor.rest()
        exchange = fake.next("/sessions")
        assert not exchange.closed.is_set()
    assert exchange.closed.wait(PATIENCE)


@pytest.mark.parametrize("name", ["uvicorn-h11", "gunicorn-gthread"])
def test_concurrent_requests_get_their_own_answers(
    name: str, servers: Any, fake: FakeWattfare
) -> None:
    address = servers(name)
    failures: list[BaseException] = []

    def visit(number: int) -> None:
        try:
            url = f"http://{address[0]}:{address[1]}{INFERENCE}"
            with http_client() as client:
                for stream in (True, False):
                    headers = {**ME, "x-me": f"user {number}"}
                    answer = client.post(url, headers=headers, content=body_of(stream=stream))
                    assert answer.status_code == 200
                    assert ("[DONE]" in answer.text) == stream
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures
    assert sorted({exchange.user or "" for exchange in fake.exchanges}) == sorted(
        f"user {number}" for number in range(25)
    )
    assert len(fake.exchanges) == 50
