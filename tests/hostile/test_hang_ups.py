"""Clients that disconnect before their answer: the provider charges for the call, and so does the
ledger."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import RowMapping, text
from support.patience import PATIENCE
from support.servers import Visitor
from support.service import App, Service, bearer, eventually, run_service
from support.sockets import send_call
from support.upstream import Exchange, Upstream, completion_of

from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify

MODEL = {"model": "fake/model"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
COST = 5 * 1000 + 7 * 2000
#: Tokens of the prompt of `chat_body()` if the upstream reports no usage.
PROMPT = 11 * 1000


class Late:
    """An upstream that answers on command, charges for each answer, and counts them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.charged = 0

    def __call__(self, exchange: Exchange) -> None:
        # A closed connection is readable.
        while not self.go.is_set() and not select.select([exchange.connection], [], [], 0.02)[0]:
            pass
        tokens = exchange.json["max_tokens"]
        self.charged += 5 * 1000 + tokens * 2000
        usage = {"prompt_tokens": 5, "completion_tokens": tokens}
        exchange.answer(completion_of("x", usage=usage))


@contextmanager
def serving(tmp_path: Path, upstream: Upstream, *options: str) -> Iterator[App]:
    paid = ("--upstream-key", "sk-or-operator-0123456789abcdef", "--user-ceiling-usd", "1")
    with run_service(tmp_path, "--upstream", upstream.url, *paid, *options) as service:
        app = service.app()
        app.connect(monthlyUsd=1)
        yield app
        app.close()


def is_answered(visitor: Visitor) -> bool:
    return bool(select.select([visitor._socket], [], [], 0)[0])


def ledger(service: Service) -> list[RowMapping]:
    """Returns the rows once no call is in flight."""

    def settled() -> list[RowMapping]:
        held = text("SELECT count(*) FROM reservations")
        if read_database(service.database, lambda sql: sql.execute(held).scalar_one()):
            return []
        return read_database(service.database, lambda sql: list(rows_of(sql)))

    rows = eventually(settled)
    assert read_database(service.database, verify) == []
    return rows


def keeps_upstream_connection(upstream: Upstream) -> None:
    """Checks that the service keeps its connection to the upstream, although it had time to close
    it."""
    assert not upstream.gone.acquire(timeout=0.3)


@pytest.mark.parametrize("tokens", [400_000, 20_000])
def test_twenty_disconnected_calls_stay_within_the_ceiling(
    tmp_path: Path, upstream: Upstream, tokens: int
) -> None:
    upstream.script = late = Late()
    with serving(tmp_path, upstream) as app:
        for number in range(20):
            visitor = send_call(app, max_tokens=tokens)
            arrived = len(upstream.calls)
            eventually(lambda v=visitor, n=arrived: len(upstream.calls) > n or is_answered(v))
            visitor.leave()
            if tokens == 20_000:
                assert len(upstream.calls) == number + 1  # each has its reservation
        keeps_upstream_connection(upstream)
        late.go.set()
        rows = ledger(app.service)
        assert late.charged > 0.7 * 10**9
        assert sum(row["billed_nanos"] for row in rows) == late.charged <= 10**9
        assert {row["ended"] for row in rows} == {"completed"}
        used = Decimal(str(app.status()["usage"]["monthlyUsd"]))
        assert used * 10**9 == late.charged


def test_call_without_its_client_counts_as_a_call_at_once(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.script = late = Late()
    with serving(tmp_path, upstream, "--max-calls-per-user", "2") as app:
        visitors = [send_call(app, max_tokens=20), send_call(app, max_tokens=20)]
        eventually(lambda: len(upstream.calls) == 2)
        for visitor in visitors:
            visitor.leave()
        keeps_upstream_connection(upstream)
        refused = app.chat(**MODEL)
        assert refused.status_code == 429
        assert "at most 2 running calls" in refused.json()["error"]["message"]
        late.go.set()
        eventually(lambda: app.chat(**MODEL, max_tokens=20).status_code == 200)
        assert [row["billed_nanos"] for row in ledger(app.service)] == [45_000] * 3


@pytest.mark.parametrize("end", ["time", "revocation", "shutdown"])
def test_time_limit_or_stop_ends_a_call_without_its_client(
    tmp_path: Path, upstream: Upstream, end: str
) -> None:
    """Its cost is then unknown. The prompt is billed."""
    upstream.script = Exchange.hang
    seconds = "0.2" if end == "time" else "300"
    with serving(tmp_path, upstream, "--detached-seconds", seconds) as app:
        visitor = send_call(app)
        eventually(lambda: upstream.calls)
        visitor.leave()
        if end != "time":
            keeps_upstream_connection(upstream)
        if end == "revocation":
            app.http.delete("/connections", headers=bearer(app.token()))
        if end == "shutdown":
            assert app.service.stop() == 0
        upstream.wait_gone()
        [row] = ledger(app.service)
    assert row["ended"] == ("timed_out" if end == "time" else "cut_off")
    assert row["billed_nanos"] == PROMPT


def test_request_is_not_sent_after_its_client_disconnects(
    tmp_path: Path, upstream: Upstream
) -> None:
    asked, go = threading.Event(), threading.Event()

    def slow_list(exchange: Exchange) -> None:
        asked.set()
        assert go.wait(PATIENCE)
        exchange.answer(upstream.models)

    upstream.models_script = slow_list
    with serving(tmp_path, upstream) as app:
        visitor = send_call(app)
        assert asked.wait(PATIENCE)
        visitor.leave()
        eventually(lambda: any(" gone " in line for line in app.service.log))
        go.set()
        assert app.chat(**MODEL).status_code == 200
        assert len(upstream.calls) == len(ledger(app.service)) == 1


class PausedStream:
    """A stream of two words and its usage, with a pause after the first word."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.word("one ")
        while not self.go.is_set():
            if select.select([exchange.connection], [], [], 0.02)[0]:
                exchange.hang()
        exchange.word("two")
        exchange.usage(USAGE)
        exchange.done()


def leave_a_stream(app: App) -> None:
    visitor = send_call(app, stream=True)
    visitor.wait_for(b"one ")
    visitor.leave()


@pytest.mark.parametrize("options", [(), ("--on-hang-up", "stop")])
def test_stream_is_closed_after_its_client_disconnects(
    tmp_path: Path, upstream: Upstream, options: tuple[str, ...]
) -> None:
    upstream.script = PausedStream()
    with serving(tmp_path, upstream, *options) as app:
        leave_a_stream(app)
        upstream.wait_gone()
        [row] = ledger(app.service)
        assert (row["ended"], row["billed_nanos"]) == ("client_gone", PROMPT + 2000)


def test_stream_is_read_to_its_end_after_its_client_disconnects(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.script = paused = PausedStream()
    options = ("--on-hang-up", "finish", "--max-calls-per-user", "1")
    with serving(tmp_path, upstream, *options) as app:
        leave_a_stream(app)
        keeps_upstream_connection(upstream)
        assert app.chat(**MODEL).status_code == 429
        paused.go.set()
        [row] = ledger(app.service)
        assert (row["ended"], row["billed_nanos"]) == ("completed", COST)


def test_stream_without_its_client_is_read_for_a_limited_time(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.script = PausedStream()
    options = ("--on-hang-up", "finish", "--detached-seconds", "0.2")
    with serving(tmp_path, upstream, *options) as app:
        leave_a_stream(app)
        upstream.wait_gone()
        [row] = ledger(app.service)
        assert (row["ended"], row["billed_nanos"]) == ("timed_out", PROMPT + 2000)
