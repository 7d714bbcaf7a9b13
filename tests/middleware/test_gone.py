"""If the client disconnects, the call to the service is closed. Other cancellations propagate."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest
from support.drivers import (
    INFERENCE,
    JSON,
    MODELS,
    STATUS,
    TOKEN,
    ASGIDriver,
    Drive,
    Live,
    body_of,
    scope_of,
)
from support.fake_wattfare import DONE, USAGE, Exchange, FakeWattfare, good, held, held_stream, word
from support.patience import PATIENCE

from wattfare_mw import TokenUsage
from wattfare_mw.receiving import WATCH_AFTER

asgi_only = pytest.mark.parametrize("interface", ["asgi"], indirect=True)
wsgi_only = pytest.mark.parametrize("interface", ["wsgi"], indirect=True)
STREAM = body_of(stream=True)


def nothing_came(live: Live) -> None:
    assert live.rest() == b""
    assert not live.started.is_set()


@asgi_only
@pytest.mark.parametrize("body", [body_of(), STREAM])
def test_asgi_disconnect_before_the_first_byte(
    drive: Drive, fake: FakeWattfare, body: bytes
) -> None:
    fake.script = held
    live = drive().open("POST", INFERENCE, JSON, body)
    exchange = fake.next()
    live.close()
    exchange.wait_gone()
    nothing_came(live)


@asgi_only
@pytest.mark.parametrize(
    ("method", "path"), [("POST", TOKEN), ("GET", STATUS), ("HEAD", STATUS), ("GET", MODELS)]
)
def test_asgi_disconnect_on_every_path(
    drive: Drive, fake: FakeWattfare, method: str, path: str
) -> None:
    fake.script = held
    live = drive().open(method, path)
    exchange = fake.next(fake_path(path))
    live.close()
    exchange.wait_gone()
    nothing_came(live)


def fake_path(path: str) -> str:
    return {TOKEN: "/sessions", STATUS: "/status", MODELS: "/models"}[path]


@asgi_only
@pytest.mark.parametrize(
    ("method", "path"), [("POST", INFERENCE), ("POST", TOKEN), ("GET", STATUS), ("GET", MODELS)]
)
def test_asgi_disconnect_cancels_resolve_user(
    drive: Drive, fake: FakeWattfare, method: str, path: str
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def resolve_user(request: Any) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "user_1"

    live = drive(resolve_user=resolve_user).open(method, path, JSON, body_of())
    assert begun.wait(PATIENCE)
    live.close()
    assert cancelled.wait(PATIENCE)
    nothing_came(live)
    assert not fake.exchanges


HALF, REST = body_of()[:9], body_of()[9:]


class Sender:
    """The ``receive`` of a request whose client sends these messages, and then stays."""

    def __init__(self, *messages: Any) -> None:
        self._messages = list(messages)
        self.first_read = asyncio.Event()
        self.concurrent = 0

    @property
    def left(self) -> int:
        """The number of messages that are not received yet."""
        return len(self._messages)

    async def __call__(self) -> Any:
        assert self.concurrent == 0, "two tasks receive at the same time"
        self.concurrent += 1
        try:
            self.first_read.set()
            if not self._messages:
                await asyncio.Event().wait()
            message = self._messages.pop(0)
            if isinstance(message, Exception):
                raise message
            return message
        finally:
            self.concurrent -= 1


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@asgi_only
@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([part(HALF + REST)], 200),
        ([part(HALF, True), part(REST)], 200),
        ([part(b"", True), part(HALF, True), part(REST, True), part(b"")], 200),
        ([part(b" " * 40_000, True), part(b" " * 40_000, True), part(HALF + REST)], 200),
        ([part(HALF, True), RuntimeError("the server fails")], 500),
        ([RuntimeError("the server fails")], 500),
    ],
    ids=["whole", "two parts", "four parts", "large", "error after a part", "error"],
)
def test_body_is_read_whole_after_a_slow_resolve_user(
    drive: Drive, fake: FakeWattfare, messages: list[Any], status: int
) -> None:
    """The middleware reads ahead to see whether the client has left."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(middleware: Any) -> None:
        receive = Sender(*messages)
        request = scope_of("POST", INFERENCE, JSON, sender=receive)
        await middleware(request, receive, send)

    async def resolve_user(request: Any) -> str:
        await request.scope["sender"].first_read.wait()
        return "user_1"

    driver = drive(resolve_user=resolve_user)
    driver.loop.run(ask(driver.middleware))
    assert sent[0]["status"] == status
    assert [each.body.strip() for each in fake.exchanges] == [body_of()] * (status == 200)


@asgi_only
def test_large_body_stays_unread_until_its_sender_is_known(
    drive: Drive, fake: FakeWattfare
) -> None:
    async def ask(middleware: Any) -> None:
        receive = Sender(*[part(b" " * 10_000, True)] * 100)

        async def resolve_user() -> None:
            await receive.first_read.wait()
            await asyncio.sleep(3 * WATCH_AFTER)  # the timer would start another look by now

        request = scope_of("POST", INFERENCE, JSON, wait=resolve_user)
        await middleware(request, receive, lambda message: asyncio.sleep(0))
        assert receive.left == 93  # 70 kB are read

    async def resolve_user(request: Any) -> None:
        await request.scope["wait"]()

    driver = drive(resolve_user=resolve_user)
    driver.loop.run(ask(driver.middleware))
    assert not fake.exchanges


@asgi_only
def test_asgi_disconnect_within_a_json_answer(drive: Drive, fake: FakeWattfare) -> None:
    fake.script = lambda x: (x.head(200, {"content-length": "99"}), x.send(b"{"))
    live = drive().open("POST", INFERENCE, JSON, body_of())
    exchange = fake.next()
    live.close()
    exchange.wait_gone()
    nothing_came(live)


@asgi_only
@pytest.mark.parametrize("half", [b"", b"data: half"])
def test_asgi_disconnect_within_a_stream(
    drive: Drive, fake: FakeWattfare, caplog: Any, half: bytes
) -> None:
    caplog.set_level("INFO", "wattfare_mw")
    reports: list[Any] = []
    fake.script = held_stream
    driver = drive(on_usage=lambda *args: reports.append(args))
    live = driver.open("POST", INFERENCE, JSON, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one", usage=USAGE) + half)
    assert live.next() == word("one", usage=USAGE)
    live.close()
    exchange.wait_gone()
    assert live.rest() == b""  # no partial event, and no client for an error event
    assert [args[2] for args in reports] == [TokenUsage(5, 3, 8)]
    assert "outcome=gone" in caplog.text


@asgi_only
def test_asgi_disconnect_between_two_tries(
    drive: Drive, fake: FakeWattfare, monkeypatch: Any
) -> None:
    asleep = threading.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("wattfare_mw.client.asyncio.sleep", sleep)
    fake.script = lambda x: x.error("upstream", 503)
    live = drive().open("GET", STATUS)
    assert asleep.wait(PATIENCE)
    monkeypatch.undo()
    live.close()
    nothing_came(live)


@asgi_only
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_asgi_server_cancellation_propagates(
    drive: Drive, fake: FakeWattfare, stream: bool, started: bool
) -> None:
    """The server stops: the call is closed, and the task is cancelled as requested."""
    reports = threading.Event()
    fake.script = held_stream if started else held
    driver = drive(on_usage=lambda *args: reports.set())
    live: Any = driver.open("POST", INFERENCE, JSON, body_of(stream=stream))
    exchange = fake.next()
    if started:
        exchange.chunk(word("one"))
        assert live.next() == word("one")
    live.task.cancel()
    exchange.wait_gone()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        live.rest()
    # A call in progress may have been billed, so `on_usage` reports an unknown cost.
    assert reports.is_set()


@asgi_only
def test_asgi_disconnect_and_server_cancellation_at_once(drive: Drive, fake: FakeWattfare) -> None:
    """The client disconnects while the server stops: our own cancellation is absorbed, the server's
    propagates."""
    fake.script = held
    driver: Any = drive()
    live: Any = driver.open("POST", INFERENCE, JSON, STREAM)
    exchange = fake.next()

    def both() -> None:
        live.close()
        live.task.cancel()

    driver.loop.loop.call_soon_threadsafe(both)
    exchange.wait_gone()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        live.rest()


@asgi_only
def test_asgi_cancellation_by_the_app_propagates(drive: Drive) -> None:
    async def resolve_user(request: Any) -> str:
        raise asyncio.CancelledError

    live = drive(resolve_user=resolve_user).open("POST", TOKEN)
    with pytest.raises(asyncio.CancelledError):
        live.rest()


@asgi_only
@pytest.mark.parametrize("error", [OSError, BrokenPipeError, ConnectionResetError, ValueError])
@pytest.mark.parametrize("at", [0, 1])
def test_asgi_send_error_ends_the_call(
    drive: Drive, fake: FakeWattfare, error: type[Exception], at: int
) -> None:
    fake.script = lambda x: (x.start_stream(), x.chunk(word("one")))
    driver: Any = drive()
    sent: list[Any] = []

    async def receive() -> Any:
        if not sent:
            sent.append(None)
            return {"type": "http.request", "body": STREAM}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if len(sent) > at:
            raise error
        sent.append(message)

    call = driver.middleware(scope_of("POST", INFERENCE, JSON), receive, send)
    if issubclass(error, OSError):
        driver.loop.run(call)
    else:  # a bug between the server and us
        with pytest.raises(error):
            driver.loop.run(call)
    fake.next().wait_gone()


@asgi_only
@pytest.mark.parametrize("left_at", range(6))
def test_asgi_disconnect_at_any_moment(drive: Drive, fake: FakeWattfare, left_at: int) -> None:
    """Nothing is raised, and no cancellation stays pending (the driver checks)."""
    driver = drive()
    for body in (body_of(), STREAM):
        leave: list[Callable[[], None]] = []
        steps = 0

        def script(exchange: Exchange, leave: Any = leave) -> None:
            nonlocal steps
            whole = [
                lambda: exchange.start_stream(),
                lambda: exchange.chunk(word("one")),
                lambda: exchange.chunk(word("two")),
                lambda: exchange.chunk(DONE),
                lambda: exchange.end(),
            ]
            for number, step in enumerate(whole):
                if number == left_at:
                    leave[0]()
                step()
            if left_at == len(whole):
                leave[0]()

        fake.script = script
        ready = threading.Event()

        def when_ready(exchange: Exchange, ready: Any = ready, script: Any = script) -> None:
            assert ready.wait(PATIENCE)
            script(exchange)

        fake.script = when_ready
        live = driver.open("POST", INFERENCE, JSON, body)
        leave.append(live.close)
        ready.set()
        assert (word("one") + word("two") + DONE).startswith(live.rest())


@asgi_only
def test_asgi_disconnect_leaves_no_task(drive: Drive, fake: FakeWattfare) -> None:
    driver: Any = drive()
    for body in (body_of(), STREAM):
        driver.request("POST", INFERENCE, JSON, body)

    async def names() -> list[str]:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert [name for name in driver.loop.run(names()) if "_watch" in name] == []


@asgi_only
def test_asgi_failed_receive_closes_the_call(drive: Drive, fake: FakeWattfare, caplog: Any) -> None:
    driver: Any = drive()
    sent: list[Any] = []
    asked = 0
    failed = threading.Event()

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "http.request", "body": body_of()}
        failed.set()
        raise RuntimeError("there is no more")

    def script(exchange: Exchange) -> None:
        assert failed.wait(PATIENCE)
        good(exchange)

    fake.script = script

    async def send(message: Any) -> None:
        sent.append(message)

    driver.loop.run(driver.middleware(scope_of("POST", INFERENCE, JSON), receive, send))
    gc.collect()
    assert asked == 2
    assert sent[0]["status"] == 200
    assert not [record for record in caplog.records if record.name == "asyncio"]


# -- WSGI, which has no disconnect message


@wsgi_only
def test_wsgi_disconnect_is_noticed_at_the_next_chunk(
    drive: Drive, fake: FakeWattfare, caplog: Any
) -> None:
    caplog.set_level("INFO", "wattfare_mw")
    reports: list[Any] = []
    fake.script = held_stream
    driver = drive(on_usage=lambda *args: reports.append(args))
    live = driver.open("POST", INFERENCE, JSON, STREAM)
    exchange = fake.next()
    exchange.chunk(word("one"))
    assert live.next() == word("one")
    live.close()
    exchange.chunk(word("two"))
    exchange.wait_gone()
    assert live.rest() == b""
    assert len(reports) == 1
    assert "outcome=gone" in caplog.text


@wsgi_only
@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_wsgi_server_that_stops_reading_closes_the_call(
    drive: Drive, fake: FakeWattfare, read: int, how: str
) -> None:
    reports: list[Any] = []
    driver: Any = drive(on_usage=lambda *args: reports.append(args))
    fake.script = lambda x: (x.start_stream(), x.chunk(word("one")))
    result = iter(driver.middleware(*_call(STREAM)))
    for _ in range(read):
        assert next(result) == word("one")
    if how == "close":
        result.close()
        result.close()
        assert list(result) == []
    else:  # as werkzeug's lint does if the inner app has failed
        del result
        gc.collect()
    fake.next().wait_gone()
    assert len(reports) == 1


@wsgi_only
def test_wsgi_failed_start_response_closes_the_call(drive: Drive, fake: FakeWattfare) -> None:
    driver: Any = drive()
    fake.script = held_stream
    environ, _ = _call(STREAM)

    def start_response(*args: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        driver.middleware(environ, start_response)
    gc.collect()
    fake.next().wait_gone()


def _call(body: bytes) -> tuple[Any, Any]:
    from support.drivers import environ_of, with_length

    return environ_of("POST", INFERENCE, with_length(JSON, body), body), lambda *args: None


def test_complete_call_returns_its_connection_to_the_pool(drive: Drive, fake: FakeWattfare) -> None:
    driver = drive()
    for body in (body_of(), STREAM, body_of(), STREAM):
        assert driver.request("POST", INFERENCE, JSON, body).status == 200
    assert len({id(exchange.writer) for exchange in fake.exchanges}) == 1
    assert not isinstance(driver, ASGIDriver) or driver.loop.loop.is_running()


@asgi_only
def test_asgi_usage_of_a_call_without_its_client_is_reported(
    drive: Drive, fake: FakeWattfare, caplog: Any
) -> None:
    """It may have been billed: `on_usage` and the log report it with an unknown cost."""
    caplog.set_level("INFO", "wattfare_mw")
    reports: queue.Queue[Any] = queue.Queue()
    fake.script = held
    live = drive(on_usage=lambda *args: reports.put(args)).open(
        "POST", INFERENCE, JSON, body_of(stream=False)
    )
    exchange = fake.next()
    live.close()
    exchange.wait_gone()
    _user, _model, usage, cost = reports.get(timeout=PATIENCE)
    assert (usage, cost) == (None, None)
    assert "outcome=gone" in caplog.text


def test_refused_call_is_logged_and_has_no_usage(
    drive: Drive, fake: FakeWattfare, caplog: Any
) -> None:
    caplog.set_level("INFO", "wattfare_mw")
    reports: list[Any] = []
    fake.script = lambda x: x.error("budget_exceeded", 402)
    answer = drive(on_usage=lambda *args: reports.append(args)).request(
        "POST", INFERENCE, JSON, body_of(stream=False)
    )
    assert answer.code == "budget_exceeded"
    assert "status=402 outcome=refused" in caplog.text
    assert not reports


def test_idle_connection_closed_by_the_service_is_replaced(
    drive: Drive, fake: FakeWattfare, caplog: Any
) -> None:
    driver = drive()
    for _ in range(2):
        fake.script = held_stream
        live = driver.open("POST", INFERENCE, JSON, STREAM)
        exchange = fake.next()
        live.wait_started()
        exchange.chunk(DONE)
        exchange.end()
        assert live.rest() == DONE
        exchange.reset()
        assert exchange.closed.wait(PATIENCE)
        fake.script = good
        assert driver.request("GET", STATUS).status == 200  # so the loop has run once
        fake.next("/status")
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
