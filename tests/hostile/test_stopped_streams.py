"""Streams that are cut off, of a provider that keeps a record of each call's cost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import RowMapping, text
from support.forked import run_forked
from support.leases import end_leases
from support.patience import PATIENCE
from support.servers import Visitor
from support.service import App, Service, bearer, eventually
from support.sockets import send_call
from support.upstream import Exchange, Upstream, chunk_of, no_record

from wattfare_mw.errors import WattfareError
from wattfare_mw.service import create_keys
from wattfare_mw.service.inference import true_costs
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify
from wattfare_mw.service.models import generations
from wattfare_mw.service.models.upstream import Upstream as Provider

ID = "gen-1732"
#: The prompt by its length, and one word.
METERED = 11 * 1000 + 2000
RECORD = {"id": ID, "total_cost": 0.00012345, "is_byok": False}
TRUE = 123_450


def one_word_then_hang(exchange: Exchange) -> None:
    """Sends a word, then nothing until the client disconnects."""
    exchange.start_stream()
    exchange.chunk(b": OPENROUTER PROCESSING\n\n")
    exchange.event(chunk_of({"id": ID, "choices": [{"index": 0, "delta": {"content": "one "}}]}))
    exchange.hang()


def record(**fields: Any) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer({"data": {**RECORD, **fields}})


class AfterSome:
    """A record that exists from the third request on."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        (no_record if self.asked < 3 else record())(exchange)


@contextmanager
def serving(database: str, upstream: Upstream, **settings: Any) -> Iterator[tuple[Service, Any]]:
    """A process in front of an upstream that keeps records."""
    more = {"upstream_key": "sk-or-operator-0123456789abcdef", "user_ceiling": 10**9, **settings}
    with run_forked(
        database=database, upstream=upstream.url, provider="openrouter", stop_grace=0, **more
    ) as (process, url):
        yield Service(url, database, process), process  # type: ignore[arg-type]


def app_of(service: Service) -> App:
    app = App(service, create_keys(service.database, "test app"))
    app.connect(monthlyUsd=1)
    return app


def cut_stream(app: App, *, stay: bool = False, at: str = "one ") -> Visitor:
    """Opens a stream and, unless `stay` is set, disconnects after this text."""
    visitor = send_call(app, stream=True, max_tokens=400)
    visitor.wait_for(at.encode())
    if not stay:
        visitor.leave()
    return visitor


def count(database: str, where: str) -> int:
    asked = text(f"SELECT count(*) FROM reservations WHERE {where}")
    return read_database(database, lambda sql: sql.execute(asked).scalar_one())


def ledger(database: str) -> list[RowMapping]:
    """Returns the rows once no call is in flight."""
    eventually(lambda: not count(database, "1 = 1"))
    assert read_database(database, verify) == []
    return read_database(database, lambda sql: list(rows_of(sql)))


def test_cut_stream_is_billed_by_its_record(database: str, upstream: Upstream) -> None:
    upstream.script, upstream.record_script = one_word_then_hang, AfterSome()
    with serving(database, upstream) as (service, _), app_of(service) as app:
        cut_stream(app)
        upstream.wait_gone()
        [row] = ledger(database)
    assert [question.path for question in upstream.questions] == [f"/api/v1/generation?id={ID}"] * 3
    assert upstream.questions[0].headers["authorization"].startswith("Bearer sk-or-operator")
    assert (row["ended"], row["billed_nanos"], row["claimed_nanos"]) == ("client_gone", TRUE, TRUE)


@pytest.mark.parametrize("first", ["nothing", "a comment"])
def test_stream_cut_before_its_first_chunk_is_billed_by_its_record(
    database: str, upstream: Upstream, first: str
) -> None:
    """OpenRouter also names the generation in a header, before the first chunk."""

    def silent(exchange: Exchange) -> None:
        exchange.start_stream(headers={"X-Generation-Id": ID})
        if first == "a comment":
            exchange.chunk(b": OPENROUTER PROCESSING\n\n")
        exchange.hang()

    upstream.script, upstream.record_script = silent, record()
    with serving(database, upstream) as (service, _), app_of(service) as app:
        visitor = cut_stream(app, stay=True, at="text/event-stream")
        eventually(lambda: count(database, f"generation_id = '{ID}'"))
        visitor.leave()
        upstream.wait_gone()
        [row] = ledger(database)
    assert [question.path for question in upstream.questions] == [f"/api/v1/generation?id={ID}"]
    assert (row["ended"], row["billed_nanos"]) == ("client_gone", TRUE)


def test_header_that_is_not_a_generation_id_is_ignored(database: str, upstream: Upstream) -> None:
    """A chunk then names the generation."""

    def odd(exchange: Exchange) -> None:
        exchange.start_stream(headers={"X-Generation-Id": "gen-" + "x" * 2000})
        exchange.event(
            chunk_of({"id": ID, "choices": [{"index": 0, "delta": {"content": "one "}}]})
        )
        exchange.hang()

    upstream.script, upstream.record_script = odd, record()
    with serving(database, upstream) as (service, _), app_of(service) as app:
        cut_stream(app)
        [row] = ledger(database)
    assert [question.path for question in upstream.questions] == [f"/api/v1/generation?id={ID}"]
    assert row["billed_nanos"] == TRUE


def test_cut_stream_counts_as_a_call_at_once_until_it_is_settled(
    database: str, upstream: Upstream
) -> None:
    upstream.script = one_word_then_hang
    with serving(database, upstream, max_calls_per_user=1) as (service, _), app_of(service) as app:
        cut_stream(app)
        eventually(lambda: upstream.questions)
        assert app.chat(model="fake/model").status_code == 429
        assert app.status()["usage"]["monthlyUsd"] == 0
        eventually(lambda: count(database, f"generation_id = '{ID}'"))
        upstream.record_script = record()
        [row] = ledger(database)
        assert row["billed_nanos"] == TRUE


def test_cut_stream_is_never_billed_more_than_its_reservation(
    database: str, upstream: Upstream
) -> None:
    upstream.script, upstream.record_script = one_word_then_hang, record(total_cost=5)
    with serving(database, upstream) as (service, _), app_of(service) as app:
        cut_stream(app)
        [row] = ledger(database)
    assert row["billed_nanos"] == row["reserved_nanos"] < 10**9
    assert row["claimed_nanos"] == 5 * 10**9


def test_revoked_stream_ends_before_its_record_is_read(database: str, upstream: Upstream) -> None:
    upstream.script = one_word_then_hang
    with serving(database, upstream) as (service, _), app_of(service) as app:
        visitor = cut_stream(app, stay=True)
        app.http.delete("/connections", headers=bearer(app.token()))
        visitor.wait_for(b"not_connected")
        assert count(database, "1 = 1") == 1
        upstream.record_script = record()
        [row] = ledger(database)
        assert (row["ended"], row["billed_nanos"]) == ("cut_off", TRUE)
        visitor.leave()


def test_record_of_a_complete_stream_is_not_read(database: str, upstream: Upstream) -> None:
    with serving(database, upstream) as (service, _), app_of(service) as app:
        assert app.chat(model="fake/model", stream=True).text.endswith("[DONE]\n\n")
        [row] = ledger(database)
    assert (row["billed_nanos"], upstream.questions) == (11_000, [])


def die(process: BaseProcess, database: str) -> None:
    """Kills the process during its calls, so that others may take them over."""
    process.kill()
    process.join()
    end_leases(database)


@pytest.mark.parametrize("when", ["streaming", "asking"])
def test_another_process_reads_the_record_after_a_crash(
    database: str, upstream: Upstream, when: str
) -> None:
    upstream.script = one_word_then_hang
    with serving(database, upstream) as (service, process), app_of(service) as app:
        visitor = cut_stream(app, stay=when == "streaming")
        eventually(lambda: count(database, f"generation_id = '{ID}'"))
        if when == "asking":
            eventually(lambda: upstream.questions)
        die(process, database)
        visitor.leave()
    upstream.record_script = record()
    with serving(database, upstream):
        [row] = ledger(database)
    assert (row["ended"], row["billed_nanos"]) == ("recovered", TRUE)


def test_stopped_process_leaves_the_record_to_the_next_process(
    database: str, upstream: Upstream
) -> None:
    """It does not wait for the record. The cost metered so far is recorded."""
    upstream.script = one_word_then_hang
    with serving(database, upstream) as (service, process), app_of(service) as app:
        cut_stream(app)
        eventually(lambda: upstream.questions)
        process.terminate()
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert count(database, f"metered_nanos = {METERED}") == 1
    with serving(database, upstream), serving(database, upstream):
        eventually(lambda: len(upstream.questions) > 3)
        upstream.record_script = record()
        [row] = ledger(database)
    assert (row["ended"], row["billed_nanos"]) == ("recovered", TRUE)


def test_missing_record_does_not_delay_the_sweep(database: str, upstream: Upstream) -> None:
    """A call without an id is settled while the record of another call is missing."""
    upstream.script = one_word_then_hang
    silent = threading.Event()

    def no_answer(exchange: Exchange) -> None:
        silent.set()
        exchange.hang()

    upstream.record_script = no_answer
    with serving(database, upstream) as (service, process), app_of(service) as app:
        visitors = [cut_stream(app, stay=True)]
        eventually(lambda: count(database, f"generation_id = '{ID}'"))
        upstream.script = Exchange.hang
        visitors.append(send_call(app, max_tokens=400))
        eventually(lambda: len(upstream.calls) == 2)
        die(process, database)
        for visitor in visitors:
            visitor.leave()
    with serving(database, upstream):
        assert silent.wait(PATIENCE)
        eventually(lambda: count(database, "1 = 1") == 1)
        assert count(database, f"generation_id = '{ID}'") == 1


def test_upstream_without_records_is_not_asked(database: str, upstream: Upstream) -> None:
    """The recorded cost is billed."""
    upstream.script = one_word_then_hang
    with serving(database, upstream) as (service, process), app_of(service) as app:
        cut_stream(app)
        eventually(lambda: count(database, f"metered_nanos = {METERED}"))
        die(process, database)
    asked = len(upstream.questions)
    with run_forked(database=database, upstream=upstream.url, stop_grace=0):
        [row] = ledger(database)
    assert (row["ended"], row["billed_nanos"]) == ("expired", METERED)
    assert len(upstream.questions) == asked


# -- one lookup, and the content of a record


class Provided:
    """A provider that returns these costs or errors in turn, and then nothing."""

    def __init__(self, *answers: int | WattfareError | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def true_cost(self, generation_id: str, credential: object = None) -> int | None:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, WattfareError):
            raise answer
        return answer


async def test_pauses_between_lookups_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(true_costs.asyncio, "sleep", noted)
    failed = WattfareError("down", code="upstream", status=502)
    provider = Provided(None, failed, *[None] * 6, 5)
    assert await true_costs.TrueCosts(provider).ask(ID) == 5  # type: ignore[arg-type]
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8]
    began = time.monotonic()
    assert await true_costs.TrueCosts(Provided(), 0.05).ask(ID) is None  # type: ignore[arg-type]
    assert time.monotonic() - began < 30


RECORDS = {
    "plain cost": ({"total_cost": 0.0015, "is_byok": False}, 1_500_000),
    "with the cost of the upstream": (
        {"total_cost": 0.0015, "upstream_inference_cost": 0.0012},
        1_500_000,
    ),
    "is_byok false": (
        {"total_cost": 0.0015, "upstream_inference_cost": 0.0012, "is_byok": False},
        1_500_000,
    ),
    "is_byok true": (
        {"total_cost": 0, "upstream_inference_cost": 0.0092, "is_byok": True},
        9_200_000,
    ),
    "is_byok with both costs": (
        {"total_cost": 0.0001, "upstream_inference_cost": 0.002, "is_byok": True},
        2_100_000,
    ),
    "is_byok as text": (
        {"total_cost": 0.1, "upstream_inference_cost": 1, "is_byok": "true"},
        10**8,
    ),
    "zero cost": ({"total_cost": 0}, 0),
    "below a nano-dollar": ({"total_cost": 1e-12}, 1),
    "is_byok without the cost of the upstream": ({"total_cost": 0, "is_byok": True}, None),
    "no cost yet": ({"total_cost": None}, None),
    "no fields": ({}, None),
    "negative": ({"total_cost": -1}, None),
    "absurd": ({"total_cost": 1e300}, None),
    "true": ({"total_cost": True}, None),
    "text": ({"total_cost": "much"}, None),
}


@pytest.mark.parametrize(("data", "cost"), RECORDS.values(), ids=RECORDS)
def test_cost_of_a_record(data: dict[str, Any], cost: int | None) -> None:
    assert generations.cost(json.dumps({"data": data}).encode()) == cost


@pytest.mark.parametrize("record", [b"", b"[]", b"null", b"<html>", b'{"data": []}', b"\xff"])
def test_invalid_record_has_no_cost(record: bytes) -> None:
    assert generations.cost(record) is None


@given(*[st.decimals(0, 10**6, places=11)] * 2, st.booleans())
def test_cost_is_rounded_up_once(total: Decimal, upstream: Decimal, own_key: bool) -> None:
    data = (
        f'{{"total_cost": {total:f}, "upstream_inference_cost": {upstream:f}, '
        f'"is_byok": {str(own_key).lower()}}}'
    )
    exact = (total + upstream if own_key else total) * 10**9
    cost = generations.cost(f'{{"data": {data}}}'.encode())
    assert cost is not None
    assert 0 <= cost - exact < 1


@pytest.mark.parametrize(
    ("chunk", "name"),
    [
        ({"id": "gen-17-aB_9"}, "gen-17-aB_9"),
        ({"id": "gen-" + "x" * 124}, "gen-" + "x" * 124),
        ({"id": "gen-" + "x" * 125}, None),
        ({"id": "gen-"}, None),
        ({"id": "gen-\u00e9"}, None),
        ({"id": "gen-1\n"}, None),
        ({"id": "chatcmpl-1"}, None),
        ({"id": 5}, None),
        ({"id": None}, None),
        ({"choices": [{"delta": {"content": '{"id": "gen-1"}'}, "id": "gen-2"}]}, None),
        ([], None),
        ("gen-1", None),
    ],
)
def test_generation_id_in_a_chunk(chunk: object, name: str | None) -> None:
    assert generations.id_of(json.dumps(chunk, ensure_ascii=False).encode()) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("gen-17-aB_9", "gen-17-aB_9"),
        (" gen-1 ", "gen-1"),
        ("gen-" + "x" * 125, None),
        ("gen-1 gen-2", None),
        ("gen-\u00e9", None),
        ("req_1", None),
        ("", None),
    ],
)
def test_generation_id_in_a_header(value: str, name: str | None) -> None:
    assert generations.id_in({"x-generation-id": value}) == name
    assert generations.id_in({}) is None


def test_path_of_a_record() -> None:
    assert generations.path("gen-a&b=/../?#") == "/generation?id=gen-a%26b%3D%2F..%2F%3F%23"


@pytest.mark.parametrize(
    ("url", "keeps"),
    [
        ("https://openrouter.ai/api/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://openrouter.ai.example.com/v1", False),
    ],
)
def test_only_openrouter_keeps_records(url: str, keeps: bool) -> None:
    assert Provider(url).keeps_records is keeps
