"""Each quirk of each provider is billed exactly as the provider defines it.

One service and one upstream run all rows. The upstream's list has a model for each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import pytest
from genai_prices import Usage, calc_price
from support.service import App, run_service
from support.upstream import Exchange, Upstream, run_upstream

from providers import PROVIDERS
from providers.rows import QUESTION, Provider, Published, Row, answer_of, stream_of
from wattfare_mw.money import nanos_ceil

ROWS = [(provider, row) for provider in PROVIDERS for row in provider.rows]
IDS = [f"{provider.name}: {row.quirk}" for provider, row in ROWS]
each_row = pytest.mark.parametrize(("provider", "row"), ROWS, ids=IDS)

#: Both ways to ask for the usage of a stream, and a request that does not ask.
ASKING: list[dict[str, Any]] = [
    {"stream_options": {"include_usage": True}},
    {"usage": {"include": True}},
    {},
]
#: A reservation above every bill.
MAX_TOKENS = 1_000_000


def model_of(row: Row) -> str:
    if isinstance(row.price, Published):
        return row.price.model
    return f"m/{next(n for n, (_, each) in enumerate(ROWS) if each is row)}"


def entry_of(row: Row) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": model_of(row)}
    if not isinstance(row.price, Published):
        entry["pricing"] = row.price
    return entry


@dataclass
class BilledService:
    """A running service in front of an upstream."""

    app: App
    upstream: Upstream
    billed: int = 0

    def ask(self, row: Row, **fields: Any) -> tuple[httpx.Response, int]:
        """The answer, and the user's bill for it in nano-dollars."""
        answer = self.app.chat(QUESTION, model=model_of(row), max_tokens=MAX_TOKENS, **fields)
        before, self.billed = self.billed, self._billed()
        return answer, self.billed - before

    def _billed(self) -> int:
        status = self.app.http.get("/status?appUserId=u1", headers=self.app.auth)
        assert status.status_code == 200, status.text
        usage = json.loads(status.text, parse_float=Decimal)["usage"]
        return int(Decimal(usage["monthlyUsd"]).scaleb(9))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BilledService]:
    with ExitStack() as running:
        upstream = running.enter_context(run_upstream())
        upstream.models = {"data": [entry_of(row) for _, row in ROWS]}
        folder = tmp_path_factory.mktemp("providers")
        served = running.enter_context(run_service(folder, "--upstream", upstream.url))
        app = running.enter_context(served.app())
        app.connect(monthlyUsd=1000)
        yield BilledService(app, upstream)


def answering(provider: Provider, row: Row) -> Any:
    def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            exchange.answer(answer_of(row), headers=dict(row.headers))
            return
        assert exchange.json["stream_options"]["include_usage"]
        exchange.start_stream()
        for chunk in stream_of(provider, row):
            if isinstance(chunk, str):
                exchange.chunk(f"{chunk}\n\n".encode())
            else:
                exchange.event(dict(chunk))
        exchange.done()

    return script


def nanos(cost: Any) -> int | None:
    """An amount in USD that a client can read."""
    return int(Decimal(cost).scaleb(9)) if isinstance(cost, (int, Decimal)) else None


def in_json(value: Any) -> Any:
    """The value as it is read from the wire."""
    return json.loads(json.dumps(value), parse_float=Decimal)


def without_usage(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "usage"}


@each_row
def test_bill_of_an_answer(service: BilledService, provider: Provider, row: Row) -> None:
    service.upstream.script = answering(provider, row)
    answer, billed = service.ask(row)
    assert billed == row.bill
    received = json.loads(answer.text, parse_float=Decimal)
    if row.fails:
        assert (answer.status_code, received["error"]["code"]) == (502, "upstream")
        return
    assert answer.status_code == 200
    assert nanos(received["usage"]["cost"]) == row.bill
    sent = in_json(answer_of(row))
    assert without_usage(received) == without_usage(sent)
    kept = sent.get("usage", {}).keys() - {"cost", *COUNTS}
    assert {name: received["usage"][name] for name in kept} == {
        name: sent["usage"][name] for name in kept
    }


#: Without choices, a chunk with one of these is for the service only.
REPORTS = ("usage", "cost")
COUNTS = {"prompt_tokens", "completion_tokens", "total_tokens"}


@each_row
def test_bill_of_a_stream(service: BilledService, provider: Provider, row: Row) -> None:
    service.upstream.script = answering(provider, row)
    for asking in ASKING:
        check_stream(service, provider, row, asking)


def check_stream(
    service: BilledService, provider: Provider, row: Row, asking: dict[str, Any]
) -> None:
    answer, billed = service.ask(row, stream=True, **asking)
    bill = row.bill if row.stream_bill is None else row.stream_bill
    assert billed == bill
    assert answer.status_code == 200
    *events, last = answer.text.removesuffix("\n\n").split("\n\n")
    if row.fails:
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream"
        return
    assert last == "data: [DONE]"
    sent = stream_of(provider, row)
    assert [each for each in events if each.startswith(":")] == [
        each for each in sent if isinstance(each, str)
    ]
    received = [
        json.loads(each.removeprefix("data: "), parse_float=Decimal)
        for each in events
        if each.startswith("data: ")
    ]
    passed = in_json([each for each in sent if not isinstance(each, str)])
    if asking:
        last_cost = [each["usage"]["cost"] for each in received if each.get("usage")][-1]
        assert nanos(last_cost) == bill
        if len(received) > len(passed):
            # The upstream's stream did not report its cost, so there is one more chunk.
            assert received.pop()["choices"] == []
    else:
        # The service has requested the usage, but the client has not.
        passed = [each for each in passed if each["choices"] or not any(map(each.get, REPORTS))]
        costs = [each["usage"]["cost"] for each in received if "cost" in (each.get("usage") or {})]
        assert not costs or nanos(costs[-1]) == bill
    assert [without_usage(each) for each in received] == [without_usage(each) for each in passed]


@pytest.mark.parametrize(
    "row", [row for _, row in ROWS if isinstance(row.price, Published)], ids=lambda row: row.quirk
)
def test_published_prices_give_the_same_bill(row: Row) -> None:
    assert isinstance(row.price, Published)
    price = calc_price(Usage(**row.price.tokens), row.price.model, price_context=row.price.context)
    assert nanos_ceil(price.total_price) == row.bill
