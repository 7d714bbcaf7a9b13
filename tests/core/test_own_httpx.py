"""Our own connections through httpx and httpx2: one for each concurrent call, reused and closed."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.clients import KINDS, SECRET, Driver, Kind, driving, without_aiohttp
from support.patience import PATIENCE
from support.wire import Wire, delta, hang, json_answer, piece, streamed
from support.wire import event as event_of

from wattfare_mw import AsyncWattfare, Wattfare, WattfareNetworkError
from wattfare_mw.transport import HTTPRequest, own_httpx
from wattfare_mw.transport.base import KEEPALIVE_SECONDS

STATUS = {"connected": False}
OURS = [kind for kind in KINDS if kind.whose == "own" and kind.library != "aiohttp"]


@pytest.fixture(params=OURS, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


class Clock:
    """Replaces the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def asking(wire: Wire) -> HTTPRequest:
    return HTTPRequest("POST", f"{wire.url}/", {"accept": "*/*"}, b"{}", 10, 10)


def connections_of(driver: Driver) -> own_httpx.HTTPConnections:
    return driver.run(driver.client._runner.transport._pool.get)


def test_connections_are_reused_and_expire(
    kind: Kind, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(own_httpx, "time", clock)
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        transport = driver.client._runner.transport

        def call() -> Any:
            return driver.run(transport.send, asking(wire))

        answers = [call() for _ in range(3)]
        assert [seen.connection for seen in wire.seen] == [0, 1, 2]
        for answer in answers:
            assert b"connected" in driver.run(answer.read)
            driver.run(answer.close)  # sends nothing more
        # The most recently used connection is reused, and the others stay open.
        for _ in range(2):
            driver.run(call().read)
            assert wire.last.connection == 2
        assert not any(connection.gone.is_set() for connection in wire.connections)
        clock.now += KEEPALIVE_SECONDS + 1
        driver.run(call().read)
        assert all(connection.gone.wait(PATIENCE) for connection in wire.connections[:2])
        assert not wire.connections[2].gone.is_set()
        assert len(connections_of(driver)._all) == 1


def test_close_closes_active_connections(kind: Kind, wire: Wire) -> None:
    wire.then(streamed(delta("Hi"))[:150], hang)
    with driving(kind, wire.url) as driver:
        connections = connections_of(driver)
        with driver.stream():
            driver.close()
            assert wire.connections[0].gone.wait(PATIENCE)
        assert not connections._all
        assert not any(connections._idle.values())


def test_failed_call_leaves_nothing_behind(kind: Kind, wire: Wire) -> None:
    wire.then(piece(event_of(delta("no HTTP"))))
    with driving(kind, wire.url) as driver:
        with pytest.raises(WattfareNetworkError):
            driver.status()
        assert wire.connections[0].gone.wait(PATIENCE)
        assert not connections_of(driver)._all


@pytest.mark.parametrize(
    ("cls", "http_client", "library"),
    [
        (Wattfare, None, "httpx"),
        (Wattfare, httpx.Client, "httpx"),
        (Wattfare, httpx2.Client, "httpx2"),
        (AsyncWattfare, None, "httpx"),
        (AsyncWattfare, httpx.AsyncClient, "httpx"),
        (AsyncWattfare, httpx2.AsyncClient, "httpx2"),
    ],
)
def test_pool_is_used_without_a_factory_or_with_a_client_class(
    cls: Any, http_client: Any, library: str
) -> None:
    with without_aiohttp():
        transport: Any = cls(SECRET, http_client=http_client)._runner.transport
    assert isinstance(transport, own_httpx.OwnHttpxTransport | own_httpx.AsyncOwnHttpxTransport)
    made = transport._pool._make()
    assert made.library.httpx.__name__ == library


def test_subclass_of_the_app_makes_its_own_client() -> None:
    class Theirs(httpx.Client):
        pass

    transport: Any = Wattfare(SECRET, http_client=Theirs)._runner.transport
    assert isinstance(transport._pool.get(), Theirs)
    transport.close()


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind.is_async], ids=lambda kind: kind.id)
def test_call_cancelled_at_its_end_leaves_nothing_behind(kind: Kind, wire: Wire) -> None:
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:
        transport = driver.client._runner.transport

        async def cancelled_after(steps: int) -> bool:
            answer = await transport.send(asking(wire))
            assert await answer.read_some()
            task = asyncio.ensure_future(answer.read_some())  # all of which has arrived
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return task.cancelled()

        steps = 1
        while driver.run(cancelled_after, steps):
            steps += 1
        assert steps > 1 or kind.library == "httpx2"  # which does not wait there
        connections = connections_of(driver)
        assert len(connections._all) == sum(map(len, connections._idle.values()))


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind.is_async], ids=lambda kind: kind.id)
def test_connection_opened_during_close_is_closed(kind: Kind, wire: Wire) -> None:
    wire.always = (json_answer(STATUS),)
    with driving(kind, wire.url) as driver:

        async def closed_meanwhile() -> None:
            task = asyncio.ensure_future(driver.client.user("u").status())
            await asyncio.sleep(0)
            await driver.client.aclose()
            with pytest.raises(WattfareNetworkError):
                await task

        driver.run(closed_meanwhile)
        assert wire.connections[0].gone.wait(PATIENCE)


async def test_one_failed_close_does_not_keep_others_open() -> None:
    closed: list[int] = []

    def connection(number: int) -> own_httpx.HTTPConnection:
        async def aclose() -> None:
            closed.append(number)
            if number == 2:
                raise asyncio.CancelledError

        return own_httpx.HTTPConnection(SimpleNamespace(aclose=aclose), None, None)

    with pytest.raises(asyncio.CancelledError):
        await own_httpx._aclose(connection(number) for number in range(4))
    assert sorted(closed) == [0, 1, 2, 3]


class ConnectionsMachine(RuleBasedStateMachine):
    """In any order of calls, a connection serves one call at a time and is closed before it is
    dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(own_httpx, "time", self.clock)
        self.patch.setattr(own_httpx, "MAX_IDLE", 3)
        self.made: list[SimpleNamespace] = []
        self.busy: list[own_httpx.HTTPConnection] = []
        library: Any = SimpleNamespace(
            httpx=SimpleNamespace(Limits=lambda **_: None, HTTPTransport=self._make)
        )
        self.connections = own_httpx.HTTPConnections(library, "HTTPTransport")

    def _make(self, **_: Any) -> SimpleNamespace:
        transport = SimpleNamespace(closed=False)
        transport.close = lambda: setattr(transport, "closed", True)
        self.made.append(transport)
        return transport

    def teardown(self) -> None:
        self.patch.undo()

    @rule()
    def begin(self) -> None:
        connection = self.connections.take("http://127.0.0.1/")
        assert connection not in self.busy
        assert not connection.transport.closed
        self.busy.append(connection)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        connection = self.busy.pop(data.draw(st.integers(0, len(self.busy) - 1)))
        before = len(self.connections._idle[None])
        unneeded = self.connections.put(connection)
        own_httpx._close(unneeded)
        assert all(each.transport.closed for each in unneeded)
        idle = self.connections._idle[None]
        assert idle[-1] is connection
        assert len(unneeded) <= 2
        for each in unneeded[max(before + 1 - own_httpx.MAX_IDLE, 0) :]:
            assert self.clock.now - each.since > KEEPALIVE_SECONDS
        if len(unneeded) < 2:
            assert len(idle) <= own_httpx.MAX_IDLE
            assert all(self.clock.now - each.since <= KEEPALIVE_SECONDS for each in idle)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        connection = self.busy.pop(data.draw(st.integers(0, len(self.busy) - 1)))
        self.connections.drop(connection)
        connection.transport.close()

    @rule()
    def close(self) -> None:
        self.connections.close()
        assert all(transport.closed for transport in self.made)
        for connection in self.busy:
            assert self.connections.put(connection) == [connection]
        self.busy.clear()
        self.connections = own_httpx.HTTPConnections(self.connections.library, "HTTPTransport")

    @rule(seconds=st.sampled_from([0.1, 1.0, KEEPALIVE_SECONDS, KEEPALIVE_SECONDS + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def all_that_is_open_is_known(self) -> None:
        known = {id(connection.transport) for connection in self.connections._all}
        assert known == {id(transport) for transport in self.made if not transport.closed}
        idle = set(self.connections._idle[None])
        assert idle == self.connections._all - set(self.busy)
        assert len(idle) == len(self.connections._idle[None])


test_connections = ConnectionsMachine.TestCase


def test_each_thread_has_its_own_connection() -> None:
    threads = 8
    library: Any = SimpleNamespace(
        httpx=SimpleNamespace(Limits=lambda **_: None, HTTPTransport=lambda **_: object())
    )
    connections = own_httpx.HTTPConnections(library, "HTTPTransport")
    together = threading.Barrier(threads)
    held: list[own_httpx.HTTPConnection | None] = [None] * threads
    at_once: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            held[number] = connection = connections.take("http://127.0.0.1/")
            if together.wait(PATIENCE) == 0:  # each holds one now
                at_once.append(len(set(held)))
            together.wait(PATIENCE)
            connections.put(connection)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert at_once == [threads] * 50
    assert len(connections._all) == threads
