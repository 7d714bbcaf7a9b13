"""One call, from its reservation to its settlement. The test controls everything around it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from support.service import chat_body
from support.sqlite import sqlite_database

from wattfare_mw import sse
from wattfare_mw.errors import WattfareError, WattfareNotConnectedError
from wattfare_mw.headers import Headers
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.errors import lease_lost
from wattfare_mw.service.inference import true_costs
from wattfare_mw.service.inference.runner import CallRunner
from wattfare_mw.service.inference.true_costs import TrueCosts
from wattfare_mw.service.keys import new_app
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.models import offers
from wattfare_mw.service.models.echo import Echo
from wattfare_mw.service.models.upstream import Upstream
from wattfare_mw.service.records import (
    Account,
    InferenceCall,
    LeaseRenewal,
    MeterReading,
    Terms,
    Totals,
)
from wattfare_mw.transport import HTTPRequest
from wattfare_mw.types import encode

COST = 3 * 1000 + 3 * 2000


class Bench:
    """A store, calls on it, and an ``Out`` that records the totals at each write."""

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store
        self.calls = CallRunner(store, Terms())
        self.app, _ = new_app("app", "test")
        self.sent: list[bytes] = []
        self.totals: list[Totals] = []
        self.on_write = None
        self.closed: list[str] = []

    async def begin(self) -> None:
        pass

    async def write(self, block: bytes) -> None:
        self.sent.append(block)
        self.totals.append(await self.account())
        if self.on_write is not None:
            await self.on_write(block)

    async def end(self, block: bytes) -> None:
        await self.write(block)
        self.sent.append(b"end")

    async def json(self, body: bytes) -> None:
        await self.write(body)

    async def account(self) -> Totals:
        return (await self.store.account(self.app.id, "u1"))[1]

    async def run(self, *, stream: bool = True, job=None) -> None:
        body = json.dumps(chat_body("one two three", stream=stream)).encode()
        request = chat_request.read(body)
        job = job or await Echo().prepare(request, "r")
        order = InferenceCall(
            id=f"call{len(self.closed)}",
            app_id=self.app.id,
            user_id="u1",
            model="m",
            bounds=job.bounds,
            request_id="r",
            stream=stream,
        )

        async def close() -> None:
            self.closed.append(order.id)

        job.close = close
        await self.calls.run(order, job, self)


@pytest.fixture
async def bench(tmp_path):
    store = SQLiteStore(sqlite_database(tmp_path))
    bench = Bench(store)
    await store.add_app(bench.app)
    await store.connect(bench.app.id, "u1", COST)
    await bench.calls.renew()
    yield bench
    assert bench.closed, "the upstream was left open"
    assert await store.transact(verify) == []
    await store.close()


async def test_call_is_settled_before_the_client_sees_its_end(bench: Bench) -> None:
    await bench.run()
    assert bench.sent[-2].endswith(b"data: [DONE]\n\n")
    assert bench.sent[-1] == b"end"
    assert bench.totals[0] == Totals(reserved=COST)
    assert bench.totals[-1] == Totals(billed=COST)


class AllAtOnce:
    """An upstream that sends its whole stream in one piece, as a short answer may. It is its own
    transport and response."""

    status = 200

    def __init__(self, *events: bytes) -> None:
        self._body = b"".join(map(sse.write, events))

    async def send(self, request: HTTPRequest) -> AllAtOnce:
        if request.method == "POST":
            self.headers = Headers([("content-type", sse.CONTENT_TYPE)])
            self._left = self._body
        else:
            self.headers = Headers([])
            price = {"prompt": "0.000001", "completion": "0.000002"}
            self._left = encode({"data": [{"id": "m", "pricing": price}]})
        return self

    async def read_some(self) -> bytes:
        left, self._left = self._left, b""
        return left

    async def read(self, limit: int = 0) -> bytes:
        return await self.read_some()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("include_usage", [True, False])
async def test_text_before_the_end_does_not_wait_for_the_settlement(
    bench: Bench, include_usage: bool
) -> None:
    words = [
        encode({"choices": [{"index": 0, "delta": {"content": word}}]}) for word in ("one", "two")
    ]
    usage = encode({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    upstream = Upstream("http://upstream", transport=AllAtOnce(*words, usage, sse.DONE))
    await bench.store.connect(bench.app.id, "u1", 10**9)
    asked = chat_body("hi", stream=True, model="m")
    if include_usage:
        asked["stream_options"] = {"include_usage": True}
    job = await upstream.prepare(chat_request.read(encode(asked)), "r")
    await bench.run(job=job)
    told = usage.replace(b"2}", b'2,"cost":0.000007}')
    before = [*words, told] if include_usage else words
    assert bench.sent == [b"".join(map(sse.write, before)), sse.write(sse.DONE), b"end"]
    assert bench.totals == [Totals(reserved=job.bounds.most), Totals(billed=3 * 1000 + 2 * 2000)]


async def test_waiting_call_is_tokenized_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It requests tighter bounds each time it checks its budget."""
    counts: list[int] = []

    def counted(_offers: object, _request: object, text: int) -> list[int]:
        counts.append(text)
        return [text // 2]

    monkeypatch.setattr(offers, "counted", counted)
    upstream = Upstream("http://upstream", transport=AllAtOnce(sse.DONE))
    asked = chat_body("hi " * 100, stream=True, model="m")
    job = await upstream.prepare(chat_request.read(encode(asked)), "r")
    wide = job.bounds
    closer = await job.tighten()
    assert closer is not None
    assert closer.least < wide.least
    assert await job.tighten() == closer
    assert len(counts) == 1


async def test_answer_with_nothing_but_its_end_is_a_failure(bench: Bench) -> None:
    upstream = Upstream("http://upstream", transport=AllAtOnce(sse.DONE))
    await bench.store.connect(bench.app.id, "u1", 10**9)
    job = await upstream.prepare(
        chat_request.read(encode(chat_body("hi", stream=True, model="m"))), "r"
    )
    await bench.run(job=job)
    assert b"did not answer" in bench.sent[0]
    assert bench.totals == [Totals()]


async def test_whole_answer_is_settled_before_it_is_sent(bench: Bench) -> None:
    await bench.run(stream=False)
    assert bench.totals == [Totals(billed=COST)]


async def test_call_cancelled_midway_is_billed_what_was_sent(bench: Bench) -> None:
    here = asyncio.Event()

    async def stay(block: bytes) -> None:
        if b"two" in block:
            here.set()
            await asyncio.Event().wait()

    bench.on_write = stay
    task = asyncio.ensure_future(bench.run())
    await here.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await bench.account() == Totals(billed=3 * 1000 + 2 * 2000)
    assert not any(b"error" in block for block in bench.sent)


async def test_call_cancelled_during_its_reservation_reserves_nothing(bench: Bench) -> None:
    for turns in range(6):
        task = asyncio.ensure_future(bench.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await bench.account()).reserved == 0


async def test_write_error_of_the_server_ends_the_call(bench: Bench) -> None:
    async def gone(block: bytes) -> None:
        if b"one" in block:
            raise OSError("the client has gone")

    bench.on_write = gone
    await bench.run()
    assert await bench.account() == Totals(billed=3 * 1000 + 1 * 2000)


async def test_late_settlement_that_fails_does_not_delay_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle = bench.store.settle
    failures: dict[str, Exception] = {}

    async def failing(reservation_id: str, *args: Any) -> int | None:
        if reservation_id in failures:
            raise failures[reservation_id]
        return await settle(reservation_id, *args)

    monkeypatch.setattr(bench.store, "settle", failing)
    await bench.store.connect(bench.app.id, "u1", 2 * COST)
    for name in ("call0", "call1"):
        failures[name] = WattfareError("The database is not available.", status=503)
        await bench.run()
    assert await bench.account() == Totals(reserved=2 * COST)

    failures = {"call0": KeyError("sk_live_secret")}
    await bench.calls.renew()
    assert await bench.account() == Totals(billed=COST, reserved=COST)
    assert "call0" in caplog.text
    assert "secret" not in caplog.text

    failures = {}
    await bench.calls.renew()
    assert await bench.account() == Totals(billed=2 * COST)


async def test_call_that_is_cut_off_sends_the_reason_and_ends(bench: Bench) -> None:
    error = WattfareNotConnectedError("taken back")

    async def cut(block: bytes) -> None:
        if b"two" in block:
            bench.calls.cut_off(error, lambda order: order.user_id == "someone else")
            await asyncio.sleep(0)
            bench.calls.cut_off(error, lambda order: order.user_id == "u1")
            await asyncio.sleep(0)

    bench.on_write = cut
    await bench.run()
    assert bench.sent[-2:] == [sse.write_error(error, "r"), b"end"]
    assert await bench.account() == Totals(billed=3 * 1000 + 2 * 2000)


@pytest.mark.parametrize("stream", [False, True])
async def test_internal_error_reveals_nothing_and_reserves_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    request = chat_request.read(json.dumps(chat_body("one two three")).encode())
    job = await Echo().prepare(request, "r")

    async def broken(granted: int, credential: object = None) -> None:
        raise KeyError("sk_live_secret")

    job.start = broken
    with caplog.at_level(logging.ERROR), pytest.raises(WattfareError) as failure:
        await bench.run(stream=stream, job=job)
    assert "KeyError" in caplog.text
    assert failure.value.http_status == 500
    assert "secret" not in failure.value.message
    assert await bench.account() == Totals()


@pytest.mark.parametrize(("last", "words"), [(b"one", 1), (b"[DONE]", 3)])
async def test_close_waits_until_all_calls_are_settled(
    bench: Bench, last: bytes, words: int
) -> None:
    async def deaf(block: bytes) -> None:
        if last in block or b"shutting" in block:
            here.set()
            await asyncio.Event().wait()  # a client that reads nothing, not even the last event

    here = asyncio.Event()
    bench.on_write = deaf
    task = asyncio.ensure_future(bench.run())
    await here.wait()
    async with asyncio.timeout(20):
        await bench.calls.close(WattfareError("shutting down", code="upstream", status=503))
    assert await bench.account() == Totals(billed=3 * 1000 + words * 2000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whole_answer_continues_without_its_client(bench: Bench) -> None:
    job = await Echo().prepare(chat_request.read(encode(chat_body("one two three"))), "r")
    said: list[bool] = []
    say = job._next_word

    async def leave_and_say() -> str:
        said.append(bench.calls.detach("call0"))
        return await say()

    job._next_word = leave_and_say
    await bench.run(stream=False, job=job)
    assert said == [True] * 3
    assert bench.sent == []
    assert await bench.account() == Totals(billed=COST)
    assert not bench.calls.detach("call0")


async def test_lost_lease_ends_a_call_without_its_client(bench: Bench) -> None:
    body = encode(chat_body("one two three"))
    job = await Echo().prepare(chat_request.read(body), "r")

    async def never() -> str:
        assert bench.calls.detach("call0")
        bench.calls.cut_off(lease_lost(), lambda _: True)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    job._next_word = never
    await bench.run(stream=False, job=job)
    assert await bench.account() == Totals(billed=3 * 1000)


async def test_unsent_request_does_not_continue_without_its_client(bench: Bench) -> None:
    job = await Echo().prepare(chat_request.read(encode(chat_body("one two three"))), "r")
    start = job.start
    said: list[bool] = []

    async def leave_and_start(granted: int, credential: object = None) -> None:
        said.append(bench.calls.detach("call0"))
        await start(granted)

    job.start = leave_and_start
    await bench.run(stream=False, job=job)
    assert said == [False]


async def test_write_error_near_the_end_does_not_stop_the_stream(
    bench: Bench,
) -> None:
    async def gone(block: bytes) -> None:
        assert b"two" not in block
        raise OSError("the client has gone")

    job = await Echo().prepare(
        chat_request.read(encode(chat_body("one two three", stream=True))), "r"
    )
    job.detaches = True
    bench.on_write = gone
    await bench.run(job=job)
    assert await bench.account() == Totals(billed=COST)


@pytest.mark.parametrize("words", [5, 400])
async def test_stream_is_recorded_at_each_tenth_of_its_reservation(
    bench: Bench, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.store.connect(bench.app.id, "u1", None)
    readings: list[MeterReading] = []
    renew = bench.store.renew

    async def noted(given: Sequence[MeterReading] = ()) -> LeaseRenewal:
        readings.extend(given)
        return await renew(given)

    async def renew_always(block: bytes) -> None:
        await bench.calls.renew()

    monkeypatch.setattr(bench.store, "renew", noted)
    bench.on_write = renew_always
    job = await Echo().prepare(
        chat_request.read(encode(chat_body("w " * words, stream=True, max_tokens=words))), "r"
    )
    await bench.run(job=job)
    costs = [0, *(reading.cost for reading in readings)]
    tenth = job.bounds.most / 10
    assert all(after - before >= tenth for before, after in pairwise(costs))
    assert costs[-1] > 8 * tenth
    assert len(readings) <= 10
    assert {reading.account for reading in readings} == {Account(bench.app.id, "u1")}


class Records(Echo):
    """The built-in model with cost records. Each has this cost, in nano-dollars."""

    keeps_records = True
    cost: int | None = None

    async def true_cost(self, generation_id: str, credential: object = None) -> int | None:
        return self.cost


@pytest.mark.parametrize(
    ("told", "billed"), [(None, 3 * 1000 + 2000), (7000, 7000), (0, 0), (10**12, COST)]
)
async def test_cut_stream_is_billed_by_its_record_or_as_metered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, told: int | None, billed: int
) -> None:
    monkeypatch.setattr(true_costs, "FIRST_PAUSE", 0)
    provider = Records()
    provider.cost = told
    bench.calls = CallRunner(bench.store, Terms(), TrueCosts(provider, 0.05))
    await bench.calls.renew()

    async def gone(block: bytes) -> None:
        if b"one" in block:
            raise OSError("the client has gone")

    bench.on_write = gone
    job = await provider.prepare(
        chat_request.read(encode(chat_body("one two three", stream=True))), "r"
    )
    job.generation_id = "gen-1"
    await bench.run(job=job)
    assert await bench.account() == Totals(billed=billed)
