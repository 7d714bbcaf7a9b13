"""The behavior that we need from each HTTP client. Each test runs on each client, with real
requests and real failures."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.clients import BY_SESSION, KINDS, ONE_OF_EACH, SECRET, Drive, Driver, Kind, driving
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
    deaf_port,
    delta,
    event,
    hang,
    head,
    json_answer,
    piece,
    reset,
    run_wire,
    streamed,
)

from wattfare_mw import (
    Timeout,
    WattfareError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    calls,
)
from wattfare_mw.transport import base, environment

#: For tests of what a client of the app may change.
EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
#: Each way in which we read an answer.
EACH_WAY = [
    Kind("httpx", False, "own"),
    Kind("httpx2", False, "injected"),
    Kind("httpx", True, "own"),
    Kind("aiohttp", True, "own"),
    BY_SESSION,
]


def raw_chunks(driver: Driver, call: calls.Call[Any]) -> tuple[Any, bytes]:
    """What the middleware forwards: the answer, and its body as it arrives."""

    def sync() -> tuple[Any, bytes]:
        answer = driver.client._runner.run(driver.client._runner.caller.open(call))
        return answer, b"".join(iter(answer.read_some, b""))

    async def asynchronous() -> tuple[Any, bytes]:
        answer = await driver.client._runner.run(driver.client._runner.caller.open(call))
        parts: list[bytes] = []
        while part := await answer.read_some():
            parts.append(part)
        return answer, b"".join(parts)

    return driver.run(asynchronous if driver.kind.is_async else sync)


# -- the request


@EVERY
def test_request_has_exactly_the_needed_headers(driver: Driver, wire: Wire) -> None:
    wire.then(json_answer(SESSION)).then(json_answer(STATUS)).then(json_answer(completion()))
    driver.create_session("us/er 1%", 20)
    driver.status("us/er 1%")
    driver.generate("Hi", max_tokens=5)
    session, status, chat = wire.seen
    assert (session.method, session.target) == ("POST", "/api/v1/sessions")
    assert session.body == b'{"appUserId":"us/er 1%","requestLimit":{"monthlyUsd":20}}'
    assert (status.method, status.body) == ("GET", b"")
    assert status.target == "/api/v1/status?appUserId=us%2Fer%201%25"
    assert (chat.method, chat.target) == ("POST", "/api/v1/chat/completions")
    assert chat.json == {
        "model": "test/model",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
    }
    assert chat.headers["x-wattfare-user"] == "u1"
    for seen in wire.seen:
        sent = seen.headers
        assert sent["authorization"] == f"Bearer {SECRET}"
        assert sent["accept-encoding"] == "identity"
        assert sent["accept"] == "application/json"
        assert sent["user-agent"] == "wattfare-mw-python"
        assert sent["host"] == f"127.0.0.1:{wire.port}"
        known = {"authorization", "accept-encoding", "accept", "user-agent", "host", "connection"}
        known |= {"content-type", "content-length", "x-wattfare-user"}
        assert set(sent) <= known
        assert ("content-type" in sent) is (seen.method == "POST")


def test_stream_requests_an_event_stream(driver: Driver, wire: Wire) -> None:
    wire.then(streamed(delta("Hi")))
    with driver.stream() as stream:
        list(stream)
    assert wire.last.headers["accept"] == "text/event-stream"
    assert wire.last.headers["accept-encoding"] == "identity"
    assert wire.last.json["stream"] is True
    assert wire.last.json["stream_options"] == {"include_usage": True}


def test_body_of_megabytes_is_sent_and_received_whole(driver: Driver, wire: Wire) -> None:
    text = "wörd " * 500_000  # 3 MB
    wire.then(json_answer(completion(text)))
    assert driver.generate(text).text == text
    assert wire.last.json["messages"] == [{"role": "user", "content": text}]
    assert wire.last.headers["content-length"] == str(len(wire.last.body))


def test_large_body_is_sent_whole_again_by_a_retry(
    drive: Drive, wire: Wire, no_wait: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A retry of a body that is written in pieces must start at its beginning.
    driver = drive(max_retries=1)
    call = calls.Call("POST", "/x", lambda _, body: body, body=b"x" * 2**21, repeatable=True)
    wire.then(answer(503)).then(answer(200, b"done"))
    assert driver.run(driver.client._runner.fetch, call) == b"done"
    assert [len(seen.body) for seen in wire.seen] == [2**21, 2**21]


# -- redirects, cookies, encodings, other credentials


@EVERY
def test_redirect_is_not_followed(drive: Drive, kind: Kind, wire: Wire) -> None:
    follows = kind.library != "aiohttp" and kind.whose != "own"
    driver = drive(http={"follow_redirects": True} if follows else None)
    for status in (301, 302, 303, 307, 308):
        wire.always = (answer(status, headers={"Location": f"{wire.url}/elsewhere"}),)
        wire.seen.clear()
        for call in (driver.status, driver.generate, lambda: driver.stream().__enter__()):
            with pytest.raises(WattfareError, match="redirect") as caught:
                call()
            assert (caught.value.status, caught.value.code) == (status, "unknown")
        assert [seen.target for seen in wire.seen].count("/elsewhere") == 0
        assert len(wire.seen) == 3


@EVERY
def test_cookie_is_not_sent_back(driver: Driver, wire: Wire) -> None:
    cookies = {"Set-Cookie": "who=user-one; Path=/; Max-Age=1000"}
    wire.then(json_answer(STATUS, **cookies)).then(json_answer(STATUS))
    driver.status()
    driver.status()
    assert "cookie" not in wire.last.headers


@EVERY
def test_cookies_of_a_passed_client_are_not_sent(drive: Drive, kind: Kind, wire: Wire) -> None:
    if kind.whose == "own":
        pytest.skip("an own client has no cookies: see above")
    http: dict[str, Any] = {"cookies": {"app": "private"}}
    if kind.library == "aiohttp":
        import aiohttp

        # The worst case: a cookie jar that sends its cookies to IP addresses, too.
        driver = drive(http=None) if kind.whose == "injected" else None
        if driver is None:

            class Jar(aiohttp.CookieJar):
                def __init__(self) -> None:
                    super().__init__(unsafe=True)
                    self.update_cookies({"app": "private"})

            from wattfare_mw import AsyncWattfare

            driver = drive()
            driver.run(driver.client.aclose)
            driver.client = AsyncWattfare(
                SECRET,
                base_url=wire.url,
                http_client=lambda: aiohttp.ClientSession(cookie_jar=Jar()),
            )
        else:
            driver.http_client.cookie_jar.update_cookies({"app": "private"})
    else:
        driver = drive(http=http)
    wire.then(json_answer(STATUS)).then(streamed(delta("Hi")))
    driver.status()
    with driver.stream() as stream:
        list(stream)
    assert all("cookie" not in seen.headers for seen in wire.seen)


def test_own_session_keeps_no_cookie(wire: Wire) -> None:
    # Our pool on httpx has no cookie jar.
    for kind in (kind for kind in KINDS if kind.whose == "own" and kind.library == "aiohttp"):
        with driving(kind, wire.url) as driver:
            wire.then(json_answer(STATUS, set_cookie="who=one; Path=/"))
            driver.status()
            held = driver.run(driver.client._runner.transport._pool.get)
            assert list(held.session.cookie_jar) == []


def test_answer_is_not_decompressed(driver: Driver, wire: Wire) -> None:
    body = gzip.compress(streamed(delta("Hi")))
    fields = {
        "Content-Type": "text/event-stream",
        "Content-Encoding": "gzip",
        "Content-Length": str(len(body)),
    }
    wire.then(head(200, fields) + body)
    call = calls.relayed_completion(calls.payer_of("u1"), b"{}", {})
    passed, content = raw_chunks(driver, call)
    assert content == body
    assert passed.headers["Content-Encoding"] == "gzip"


def test_unrequested_compression_is_a_typed_error(driver: Driver, wire: Wire) -> None:
    body = gzip.compress(b'{"connected": true}')
    wire.then(answer(200, body, {"Content-Encoding": "gzip"}))
    with pytest.raises(WattfareError) as caught:
        driver.status()
    assert (caught.value.code, caught.value.status) == ("unknown", 200)


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~/.netrc with a password for every host."""
    path = tmp_path / ".netrc"
    path.write_text("default login somebody password else\n")
    path.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(path))


@pytest.mark.usefixtures("netrc")
@EVERY
def test_netrc_does_not_change_our_credentials(drive: Drive, kind: Kind, wire: Wire) -> None:
    # An aiohttp session that trusts the environment takes proxies and passwords from there.
    driver = drive(http={"trust_env": True})
    wire.then(json_answer(STATUS))
    driver.status()
    assert wire.last.headers["authorization"] == f"Bearer {SECRET}"


@EVERY
def test_credentials_of_a_passed_client_do_not_replace_ours(
    drive: Drive, kind: Kind, wire: Wire
) -> None:
    if kind.whose == "own":
        pytest.skip("an own client has none")
    if kind.library == "aiohttp":
        driver = drive(http={"headers": {"Authorization": "Basic c29tZWJvZHk6ZWxzZQ=="}})
    else:
        driver = drive(http={"auth": ("somebody", "else")})
    wire.then(json_answer(STATUS))
    driver.status()
    assert wire.last.headers["authorization"] == f"Bearer {SECRET}"


def test_settings_of_a_passed_session_still_work(wire: Wire) -> None:
    # Our credentials must not disable the app's middlewares.
    from aiohttp import ClientRequest, ClientResponse

    met: list[str] = []

    async def middleware(request: ClientRequest, handler: Any) -> ClientResponse:
        met.append(request.method)
        return await handler(request)

    kind = Kind("aiohttp", True, "injected")
    with driving(kind, wire.url, http={"middlewares": (middleware,)}) as driver:
        wire.then(json_answer(STATUS))
        driver.status()
    assert met == ["GET"]


def test_raise_for_status_of_a_session_does_not_apply_to_ours(wire: Wire) -> None:
    kind = Kind("aiohttp", True, "injected")
    with driving(kind, wire.url, http={"raise_for_status": True}) as driver:
        wire.then(answer(402, b'{"error": {"code": "not_connected", "message": ""}}'))
        with pytest.raises(WattfareNotConnectedError):
            driver.generate()


# -- timeouts


def test_silent_service_times_out_after_read(drive: Drive, wire: Wire) -> None:
    driver = drive(timeout=Timeout(connect=PATIENCE, read=0.1))
    wire.then(hang)
    with pytest.raises(WattfareNetworkError) as caught:
        driver.status()
    assert caught.value.sent
    assert wire.connections[0].gone.wait(PATIENCE)


def test_stalled_connect_times_out_after_connect(drive: Drive) -> None:
    with deaf_port() as port:
        driver = drive(f"http://127.0.0.1:{port}", timeout=Timeout(connect=0.1, read=PATIENCE))
        with pytest.raises(WattfareNetworkError) as caught:
            driver.status()
    assert not caught.value.sent


def test_slow_first_token_does_not_time_out(drive: Drive, wire: Wire) -> None:
    # The service sends nothing for longer than `read`: before its head, its first token, its
    # second.
    slow = threading.Event()
    driver = drive(timeout=Timeout(connect=PATIENCE, read=0.01, inference=PATIENCE))

    def send_nothing(_: Any) -> None:
        slow.wait(0.04)

    first, second = piece(event(delta("one"))), piece(event(delta(" two")))
    wire.then(
        send_nothing,
        STREAM,
        send_nothing,
        first,
        send_nothing,
        second,
        piece(event("[DONE]")) + END,
    )
    with driver.stream() as stream:
        assert stream.texts() == ["one", " two"]
    wire.then(send_nothing, json_answer(completion("whole")))
    assert driver.generate().text == "whole"


@pytest.mark.parametrize("kind", EACH_WAY, ids=lambda kind: kind.id)
def test_stream_has_no_total_time_limit(drive: Drive, wire: Wire) -> None:
    # Each pause is shorter than the timeout, but their sum is longer.
    driver = drive(timeout=Timeout(connect=PATIENCE, read=0.01, inference=0.6))
    pause = threading.Event()
    parts: list[Any] = []
    for _ in range(8):
        parts += [piece(event(delta("x"))), lambda _: pause.wait(0.1)]
    wire.then(STREAM, *parts, piece(event("[DONE]")) + END)
    with driver.stream() as stream:
        assert len(stream.texts()) == 8


@pytest.mark.parametrize("kind", EACH_WAY, ids=lambda kind: kind.id)
def test_pause_within_a_stream_times_out(drive: Drive, wire: Wire) -> None:
    # Enough for the first piece, even on a busy machine.
    driver = drive(timeout=Timeout(inference=0.5))
    wire.then(STREAM, piece(event(delta("one"))), hang)
    with driver.stream() as stream:
        assert next(stream).text == "one"
        with pytest.raises(WattfareError) as caught:
            next(stream)
    assert (caught.value.code, caught.value.status) == ("upstream", 502)
    assert wire.connections[0].gone.wait(PATIENCE)


@EVERY
@pytest.mark.parametrize("own_limit", [0.02])
def test_timeouts_of_a_passed_client_do_not_apply(
    drive: Drive, kind: Kind, wire: Wire, own_limit: float
) -> None:
    if kind.whose == "own":
        pytest.skip("an own client has none")
    if kind.library == "aiohttp":
        import aiohttp

        http: Any = {"timeout": aiohttp.ClientTimeout(total=own_limit)}
    else:
        http = {"timeout": own_limit}
    driver = drive(http=http)
    quiet = threading.Event()
    wire.then(lambda _: quiet.wait(0.1), json_answer(STATUS))
    assert driver.status().connected


@contextmanager
def port_that_reads_nothing() -> Iterator[int]:
    """Accepts a connection, but has almost no buffer for data."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]  # the kernel accepts


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        *(pytest.param(kind, True, id=kind.id) for kind in ONE_OF_EACH),
        # Only aiohttp gets bodies in pieces, and only large ones.
        *(
            pytest.param(kind, False, id=f"{kind.id}-at-once")
            for kind in KINDS
            if kind.library == "aiohttp"
        ),
    ],
)
def test_service_that_reads_nothing_times_out(
    drive: Drive, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writes have a time limit, as reads do.
    if not pieces:
        monkeypatch.setattr("wattfare_mw.transport.over_aiohttp._PIECEMEAL", 10**9)
    with port_that_reads_nothing() as port:
        driver = drive(f"http://127.0.0.1:{port}", timeout=Timeout(connect=0.5, inference=0.1))
        with pytest.raises(WattfareNetworkError) as caught:
            patiently(driver, "x" * 20_000_000)
    assert caught.value.sent


def patiently(driver: Driver, prompt: str) -> None:
    """Runs the call. Even on a loop, it may not hang forever."""
    model = driver.client.user("u1").model("test/model")

    async def call() -> None:
        async with asyncio.timeout(PATIENCE):
            await model.generate(prompt)

    driver.run(call if driver.kind.is_async else lambda: model.generate(prompt))


# -- failures


def test_refused_connection_was_never_made(drive: Drive) -> None:
    driver = drive(f"http://127.0.0.1:{refused_port()}")
    for call in (driver.status, driver.create_session, driver.generate):
        with pytest.raises(WattfareNetworkError) as caught:
            call()
        assert not caught.value.sent
        assert (caught.value.code, caught.value.status) == ("network", 0)
        assert caught.value.http_status == 502


def test_unknown_host_was_never_reached(drive: Drive) -> None:
    driver = drive("http://nobody.invalid")
    with pytest.raises(WattfareNetworkError) as caught:
        driver.status()
    assert not caught.value.sent


HALF = head(200, {"Content-Type": "application/json", "Content-Length": "1000"}) + b'{"conn'
HALF_CHUNK = head(200, {"Content-Type": "x", "Transfer-Encoding": "chunked"}) + b"ff\r\n{"


FAILURES: list[tuple[Any, ...]] = [
    (reset,),
    (close,),
    (b"HTTP/1.1 200 OK\r\nContent-", reset),
    (b"HTTP/1.1 200 OK\r\nContent-", close),
    (HALF, reset),
    (HALF, close),
    (HALF_CHUNK, reset),
    (HALF_CHUNK, close),
    (b"SSH-2.0-OpenSSH_9.6\r\n", close),
    (b"HTTP/1.1 banana\r\n\r\n", close),
    (head(200, {"Content-Length": "banana"}), close),
    (head(200, {"Transfer-Encoding": "chunked"}) + b"banana\r\n", close),
]


def test_failure_after_connecting_may_have_been_received(driver: Driver, wire: Wire) -> None:
    # (aiohttp itself retries a GET whose connection was closed without an answer)
    for parts in FAILURES:
        wire.always = parts
        for call in (driver.status, driver.generate):
            with pytest.raises(WattfareNetworkError) as caught:
                call()
            assert caught.value.sent, parts
            assert (caught.value.code, caught.value.status) == ("network", 0)
            assert "127.0.0.1" not in str(caught.value)


#: Nothing, half a piece, half a length, a comment, and half an event.
RESTS = [
    b"",
    piece(event(delta(" tw")))[:-20],
    b"7",
    piece(b": a comment\n\n"),
    piece(b"data: half"),
]


@pytest.mark.parametrize("end", [reset, close], ids=["reset", "close"])
def test_broken_stream_is_not_complete(driver: Driver, wire: Wire, end: Any) -> None:
    for rest in RESTS:
        got = threading.Event()
        wire.then(STREAM, piece(event(delta("one"))), got, rest, end)
        with driver.stream() as stream:
            assert next(stream).text == "one"
            got.set()
            with pytest.raises(WattfareError) as caught:
                list(stream)
        assert (caught.value.code, caught.value.status) == ("upstream", 502), rest
        assert stream.stream.text == "one"


def test_stream_without_its_end_is_not_complete(driver: Driver, wire: Wire) -> None:
    # The HTTP is complete, but an upstream may still have cut the answer.
    wire.then(STREAM + piece(event(delta("one", finish="stop"))) + END)
    with driver.stream() as stream, pytest.raises(WattfareError) as caught:
        stream.texts()
    assert caught.value.code == "upstream"
    assert stream.stream.text == "one"


@pytest.mark.parametrize("read", [0, 1])
def test_closing_a_stream_early_closes_the_connection(
    driver: Driver, wire: Wire, read: int
) -> None:
    wire.then(STREAM, piece(event(delta("one"))), hang)
    with driver.stream() as stream:
        for _ in range(read):
            assert next(stream).text == "one"
        assert not wire.connections[0].gone.is_set()
    assert wire.connections[0].gone.wait(PATIENCE)


def test_error_of_the_app_within_a_stream_closes_the_connection(driver: Driver, wire: Wire) -> None:
    wire.then(STREAM, piece(event(delta("one"))), hang)
    with pytest.raises(ZeroDivisionError), driver.stream() as stream:
        1 / len(next(stream).tool_calls)
    assert wire.connections[0].gone.wait(PATIENCE)


def test_cancelled_call_closes_the_connection(kind: Kind, wire: Wire) -> None:
    if not kind.is_async:
        pytest.skip("nothing can be cancelled")
    with driving(kind, wire.url) as driver:
        arrived = threading.Event()
        wire.then(lambda _: arrived.set(), hang)

        async def cancelled() -> None:
            task = asyncio.ensure_future(driver.client.user("u").model("m").generate("Hi"))
            await asyncio.to_thread(arrived.wait, PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        driver.run(cancelled)
        assert wire.connections[0].gone.wait(PATIENCE)


# -- connections: reused, shared, closed


@EVERY
def test_connection_is_reused_by_the_next_call(driver: Driver, wire: Wire) -> None:
    for _ in range(3):
        wire.then(json_answer(STATUS))
        driver.status()
    wire.then(answer(402, b'{"error": {"code": "not_connected", "message": ""}}'))
    with pytest.raises(WattfareError):
        driver.generate()
    wire.then(json_answer(STATUS))
    driver.status()
    assert {seen.connection for seen in wire.seen} == {0}


@EVERY
def test_close_closes_own_connections_and_no_others(driver: Driver, kind: Kind, wire: Wire) -> None:
    wire.always = (json_answer(STATUS),)
    driver.status()
    driver.close()
    if kind.whose == "injected":
        driver.status()
        assert len(wire.connections) == 1
    else:
        assert wire.connections[0].gone.wait(PATIENCE)
        driver.status()  # if used again, it opens new ones
        assert len(wire.connections) == 2


@EVERY
def test_with_block_closes_own_connections(kind: Kind, wire: Wire) -> None:
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        if kind.is_async:

            async def use() -> None:
                async with driver.client as client:
                    await client.user("u").status()

            driver.run(use)
        else:
            with driver.client as client:
                client.user("u").status()
        if kind.whose == "injected":
            assert not wire.connections[0].gone.is_set()
        else:
            assert wire.connections[0].gone.wait(PATIENCE)


@EVERY
def test_threads_share_one_pool(kind: Kind, wire: Wire) -> None:
    if kind.is_async:
        pytest.skip("an event loop has one thread")
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        made: list[Any] = []
        gate = threading.Barrier(8)

        def work() -> None:
            gate.wait(PATIENCE)
            made.append(driver.client._runner.transport._pool.get())
            driver.status()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(made) == 8
        assert len(set(map(id, made))) == 1
    assert len(wire.seen) == 8


def test_concurrent_threads_create_one_client() -> None:
    # Two threads that enter at the same time would meet here.
    meeting = threading.Barrier(2)
    made: list[object] = []

    def make() -> object:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.1)
        made.append(object())
        return made[-1]

    pool = base.Pool(make)
    threads = [threading.Thread(target=pool.get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert made == [pool.get()]


def test_each_event_loop_has_its_own_connections_which_end_with_it(kind: Kind, wire: Wire) -> None:
    # The client is never closed here, as with `asyncio.run` in a script, or a framework that runs
    # each view on its own loop. Nothing may leak, and no warning may appear.
    if not kind.is_async or kind.whose == "injected":
        pytest.skip("has no loop, or always the same loop")
    import gc

    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        for n in range(3):
            assert asyncio.run(driver.client.user("u").status()).connected
            assert len(wire.connections) == n + 1
            gc.collect()
            assert wire.connections[n].gone.wait(PATIENCE)
        assert len(driver.client._runner.transport._pool._clients) <= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_worker_creates_its_own_connections(kind: Kind, wire: Wire) -> None:
    if kind.whose == "injected":
        pytest.skip("the app must create an injected client in each process")
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        driver.status()
        pid = os.fork()
        if pid == 0:  # the child reports by its exit code, and runs nothing of pytest
            code = 1
            try:
                if kind.is_async:
                    ours = asyncio.new_event_loop()
                    user = driver.client.user("child")
                    code = 0 if ours.run_until_complete(user.status()).connected else 2
                    ours.run_until_complete(driver.client.aclose())
                else:
                    code = 0 if driver.status("child").connected else 2
                    driver.client.close()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        driver.status("parent")
    by_user = {seen.target.partition("=")[2]: seen.connection for seen in wire.seen}
    assert by_user == {"u1": 0, "child": 1, "parent": 0}


# -- the environment


def takes_the_environment(kind: Kind) -> dict[str, Any] | None:
    """The options with which a client of this kind reads the environment. httpx reads it by
    default."""
    return {"trust_env": True} if kind.library == "aiohttp" and kind.whose != "own" else None


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_proxy_of_the_environment_is_used(
    drive: Drive,
    kind: Kind,
    wire: Wire,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    scheme: str,
) -> None:
    http = takes_the_environment(kind)
    if http and (not scheme or variable.lower() == "all_proxy"):
        pytest.skip("aiohttp itself supports neither variable, and the session is the app's")
    monkeypatch.setenv(variable, f"{scheme}127.0.0.1:{wire.port}")
    wire.then(json_answer(STATUS))
    driver = drive(f"http://service-{variable}{len(scheme)}.invalid".lower(), http=http)
    assert driver.status().connected
    assert wire.last.target.startswith("http://service-")
    assert wire.last.headers["authorization"] == f"Bearer {SECRET}"


def test_no_proxy_is_obeyed(
    drive: Drive, kind: Kind, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{refused_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{refused_port()}")
    monkeypatch.setenv("NO_PROXY", "elsewhere.test,127.0.0.1")
    driver = drive(http=takes_the_environment(kind))
    wire.then(json_answer(STATUS))
    assert driver.status().connected
    assert wire.last.target.startswith("/api/v1/")


def test_proxy_is_looked_up_once_for_each_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("urllib.request.proxy_bypass", looked.append)
    proxies = environment.Proxies()
    for user in range(3):
        assert proxies.of(f"http://127.0.0.1:1/api/v1/status?appUserId={user}") is None
    assert looked == ["127.0.0.1:1"]


@pytest.mark.parametrize("url", ["http://[::1]/", "http://[::1]:8000/"])
def test_ipv6_address_without_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "::1")
    assert environment.Proxies().of(url) is None
    assert environment.Proxies().of("http://[::2]/") == "http://127.0.0.1:1"


def test_refusing_proxy_means_never_reached(
    drive: Drive, kind: Kind, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:pass@127.0.0.1:{wire.port}")
    driver = drive("https://service.invalid", http=takes_the_environment(kind))
    wire.then(answer(403), close)
    with pytest.raises(WattfareNetworkError) as caught:
        driver.generate()
    assert not caught.value.sent
    assert wire.last.method == "CONNECT"
    assert wire.last.target == "service.invalid:443"
    # The proxy must not learn the credentials of the service.
    assert "authorization" not in wire.last.headers
    assert wire.last.headers["proxy-authorization"] == "Basic c29tZW9uZTpwYXNz"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure_wire(authority: trustme.CA) -> Any:
    """A service behind TLS with a certificate of our own authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    environment.ssl_context.cache_clear()
    with run_wire(context) as running:
        yield running
    environment.ssl_context.cache_clear()


def test_untrusted_certificate_is_refused(drive: Drive, secure_wire: Wire) -> None:
    driver = drive(secure_wire.url)
    with pytest.raises(WattfareNetworkError) as caught:
        driver.generate()
    assert not caught.value.sent
    assert not secure_wire.seen


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_of_the_environment_are_used(
    drive: Drive,
    kind: Kind,
    secure_wire: Wire,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if variable == "SSL_CERT_DIR":
        # OpenSSL finds a certificate in a directory by the hash of its subject.
        hashed = ssl_subject_hash(bundle)
        bundle.rename(tmp_path / f"{hashed}.0")
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    if kind.library == "aiohttp" and kind.whose != "own":
        pytest.skip("the app's session has already read its certificates")
    secure_wire.then(json_answer(STATUS)).then(streamed(delta("Hi")))
    driver = drive(secure_wire.url, http=None if kind.whose == "own" else {"verify": True})
    assert driver.status().connected
    with driver.stream() as stream:
        assert stream.texts() == ["Hi"]


def ssl_subject_hash(path: Path) -> str:
    import shutil
    import subprocess

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to hash with")
    command = [openssl, "x509", "-subject_hash", "-noout", "-in", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# -- kinds of clients


def wrong_kinds() -> list[tuple[Any, Any]]:
    from wattfare_mw import AsyncWattfare, Wattfare

    sync_kinds = [kind for kind in KINDS if not kind.is_async and kind.whose == "injected"]
    async_kinds = [kind for kind in KINDS if kind.is_async and kind.whose == "injected"]
    return [
        *[(Wattfare, kind) for kind in async_kinds],
        *[(AsyncWattfare, kind) for kind in sync_kinds],
    ]


@pytest.mark.parametrize(("cls", "kind"), wrong_kinds())
def test_client_of_the_other_kind_raises_at_once(cls: Any, kind: Kind) -> None:
    async def attempt() -> None:
        client = kind.make()
        try:
            with pytest.raises(TypeError, match="http_client must be"):
                cls(SECRET, http_client=client)
            with pytest.raises(TypeError, match="http_client must be"):
                cls(SECRET, http_client=type(client))
        finally:
            closing = client.close() if kind.library == "aiohttp" or not kind.is_async else None
            if closing is None and kind.is_async:
                closing = client.aclose()
            if closing is not None:
                await closing

    asyncio.run(attempt())


@pytest.mark.parametrize("wrong", [object(), "http://localhost", 7, {}])
def test_unknown_client_raises_at_once(wrong: Any) -> None:
    from wattfare_mw import AsyncWattfare, Wattfare

    for cls in (Wattfare, AsyncWattfare):
        with pytest.raises(TypeError, match="http_client must be"):
            cls(SECRET, http_client=wrong)


def test_async_factory_raises_at_once() -> None:
    from wattfare_mw import AsyncWattfare, Wattfare

    async def make() -> None: ...

    for cls in (Wattfare, AsyncWattfare):
        with pytest.raises(TypeError, match="http_client must be"):
            cls(SECRET, http_client=make)


@EVERY
def test_factory_with_another_result_raises(driver: Driver) -> None:
    from wattfare_mw import AsyncWattfare, Wattfare

    cls = AsyncWattfare if driver.kind.is_async else Wattfare
    driver.client = cls(SECRET, http_client=lambda: object())
    with pytest.raises(TypeError, match="http_client must be"):
        driver.status()


def test_aiohttp_is_the_default_if_installed() -> None:
    from support.clients import without_aiohttp

    from wattfare_mw import AsyncWattfare

    def transport_of() -> str:
        return type(AsyncWattfare(SECRET)._runner.transport).__name__

    assert transport_of() == "AiohttpTransport"
    with without_aiohttp():
        assert transport_of() == "AsyncOwnHttpxTransport"


def test_body_read_by_a_hook_raises(wire: Wire) -> None:
    """httpx keeps no second copy of a streamed body: the call fails and says why."""

    async def read(response: Any) -> None:
        await response.aread()

    hooks: dict[bool, Any] = {False: lambda response: response.read(), True: read}
    for kind in (k for k in KINDS if k.library != "aiohttp" and k.whose == "injected"):
        http = {"event_hooks": {"response": [hooks[kind.is_async]]}}
        with driving(kind, wire.url, http) as driver:
            wire.then(json_answer(STATUS))
            with pytest.raises(WattfareNetworkError) as caught:
                driver.status()
            assert "StreamConsumed" in str(caught.value.__cause__)
