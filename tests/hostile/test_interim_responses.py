"""A service that sends interim responses, such as "103 Early Hints", instead of an answer: the call
ends, over each library. This applies to our own connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.clients import KINDS, Kind, driving
from support.patience import PATIENCE
from support.wire import Connection, Wire, completion, json_answer, run_wire

from wattfare_mw import Timeout, WattfareNetworkError

HINT = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"


@pytest.fixture(params=[kind for kind in KINDS if kind.whose == "own"], ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def wire() -> Iterator[Wire]:
    with run_wire() as wire:
        yield wire


def flood(connection: Connection) -> None:
    """Sends hints, without a pause, until the client disconnects."""
    while True:
        connection.sock.sendall(HINT * 1000)


def drip(connection: Connection) -> None:
    """Sends a head byte by byte until the client disconnects."""
    connection.sock.sendall(HINT[:-2])
    pause = threading.Event()
    while True:
        connection.sock.sendall(b"a")
        pause.wait(0.02)


@pytest.mark.parametrize(("script", "read"), [(flood, PATIENCE), (drip, 0.2)])
def test_endless_head_ends_the_call(kind: Kind, wire: Wire, script: Any, read: float) -> None:
    timeout = Timeout(connect=0.5, read=PATIENCE, inference=read)
    with driving(kind, wire.url, timeout=timeout) as driver:
        wire.then(script)
        with pytest.raises(WattfareNetworkError) as caught:
            driver.generate()
        assert caught.value.sent
        assert wire.connections[0].gone.wait(PATIENCE)


def test_some_hints_do_not_end_the_call(kind: Kind, wire: Wire) -> None:
    """The limit starts again with each call on a connection."""
    large = HINT.replace(b"\r\n\r\n", b"\r\nx: " + 7000 * b"a" + b"\r\n\r\n")
    with driving(kind, wire.url) as driver:
        for _ in range(8):
            wire.then(large * 5 + json_answer(completion("x" * 2**18)))
            assert len(driver.generate().text) == 2**18
        assert len(wire.connections) == 1
