"""The upstream's list of models: refreshed in the background, and kept if a refresh fails."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from wattfare_mw import WattfareError
from wattfare_mw.service.errors import upstream_failed
from wattfare_mw.service.models import catalog
from wattfare_mw.service.models.catalog import (
    FRESH_SECONDS,
    RETRY_SECONDS,
    STALE_SECONDS,
    Catalog,
    NoListError,
)


def listing(price: str) -> bytes:
    pricing = {"prompt": price, "completion": price, "unit": "per_token"}
    return json.dumps({"data": [{"id": "m", "pricing": pricing}]}).encode()


class Source:
    """Answers on command with the list in ``now``."""

    def __init__(self) -> None:
        self.now: Any = listing("1")
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self) -> bytes:
        self.asked += 1
        await self.may_answer.wait()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def models(source: Source, clock: Clock) -> Catalog:
    return Catalog(source, "http://upstream.invalid/v1", clock=clock)


async def prompt_price(models: Catalog, model: str = "m") -> Decimal | None:
    price = await models.price(model)
    return price and price.rates.prompt


async def until_read(models: Catalog) -> None:
    reading = models._reading
    assert reading is not None
    await asyncio.wait({reading})


async def test_concurrent_reads_share_one_request(models: Catalog, source: Source) -> None:
    source.may_answer.clear()
    calls = [asyncio.create_task(prompt_price(models)) for _ in range(10)]
    impatient = asyncio.create_task(prompt_price(models))
    await asyncio.sleep(0)
    impatient.cancel()  # a cancelled read does not affect the others
    source.may_answer.set()
    assert await asyncio.gather(*calls) == [1] * 10
    assert source.asked == 1


async def test_stale_list_is_served_while_it_is_refreshed(
    models: Catalog, source: Source, clock: Clock
) -> None:
    assert await prompt_price(models) == 1
    clock.now = FRESH_SECONDS - 1
    assert await prompt_price(models) == 1
    assert source.asked == 1
    clock.now = FRESH_SECONDS
    source.now = listing("2")
    source.may_answer.clear()
    assert await prompt_price(models) == 1
    assert await prompt_price(models) == 1
    source.may_answer.set()
    await until_read(models)
    assert source.asked == 2
    assert await prompt_price(models) == 2


@pytest.mark.parametrize(
    "failure",
    [
        upstream_failed("down"),
        NoListError(),
        b"<html>",
        b'{"data": 5}',
        b'{"data": []}',
    ],
)
async def test_last_list_is_used_for_a_day(
    models: Catalog, source: Source, clock: Clock, failure: Any
) -> None:
    assert await prompt_price(models) == 1
    source.now = failure
    clock.now = FRESH_SECONDS
    assert await prompt_price(models) == 1
    await until_read(models)
    clock.now += RETRY_SECONDS - 1
    assert await prompt_price(models) == 1
    assert source.asked == 2  # no second request at once
    clock.now += 1
    assert await prompt_price(models) == 1
    await until_read(models)
    assert source.asked == 3
    clock.now = STALE_SECONDS
    with pytest.raises(WattfareError) as raised:
        await models.price("m")
    assert raised.value.code == "upstream"
    source.now = listing("3")
    assert await prompt_price(models) == 3


@pytest.mark.parametrize(
    "nothing",
    [
        NoListError(),
        b"<html>",
        b"",
        b'{"data": 5}',
        b"[",
        b"7",
        b'{"data": [{"slug": "known"}]}',
        b'{"object": "list", "data": []}',
        b'{"object": "list", "data": null}',
        b'{"data": [null, 5]}',
        b'{"models": []}',
        b"[]",
    ],
)
async def test_upstream_without_a_list_uses_published_prices(
    models: Catalog,
    source: Source,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    nothing: Any,
) -> None:
    """Only published models are known. Unknown names are not cached, because anyone can make them
    up."""
    asked: list[str] = []

    def published(model: str, _base_url: str) -> Any:
        asked.append(model)
        known = {"known": catalog.Price.flat(Decimal(5), Decimal(6))}
        return known.get(model)

    monkeypatch.setattr(catalog, "published", published)
    source.now = nothing
    assert await prompt_price(models, "known") == 5
    assert await prompt_price(models, "known") == 5
    assert await prompt_price(models, "made up") is None
    assert await prompt_price(models, "made up") is None
    assert asked == ["known", "made up", "made up"]
    assert source.asked == 1
    assert json.loads(await models.body()) == {"object": "list", "data": []}
    source.now = listing("1")
    clock.now = FRESH_SECONDS
    await models.price("known")
    await until_read(models)
    assert await prompt_price(models) == 1
    with pytest.raises(WattfareError, match="list has no model"):
        await models.price("known")


PRICING = {"prompt": "1", "completion": "2", "unit": "per_token"}


@pytest.mark.parametrize(
    "listed",
    [
        {"data": [{"id": "m", "pricing": PRICING}]},
        {"object": "list", "data": [{"id": "m", "object": "model", "pricing": PRICING}, {}, 5]},
        [{"id": "m", "pricing": PRICING}, {"id": "n"}, None],
        {"data": [{"id": "models/m", "pricing": PRICING}]},
        {"data": [{"id": None, "name": "m", "pricing": PRICING}, {"id": 5}]},
        {"models": [{"name": "m", "model": "m", "pricing": PRICING}]},
        {"models": [{"name": "models/m", "pricing": PRICING}]},
        {"models": [{"name": "m:latest", "model": "m:latest", "pricing": PRICING}]},
    ],
    ids=str,
)
async def test_each_list_format_is_read(models: Catalog, source: Source, listed: Any) -> None:
    source.now = json.dumps(listed).encode()
    assert await prompt_price(models) == 1
    assert await prompt_price(models, "models/m") == 1
    with pytest.raises(WattfareError, match="list has no model"):
        await models.price("other")
    body = json.loads(await models.body())
    assert body["data"][0]["id"].removesuffix(":latest") == "m"
    assert body["data"][0]["pricing"] == PRICING


async def test_list_in_the_usual_format_is_unchanged(models: Catalog, source: Source) -> None:
    source.now = b'{ "data": [ {"id": "m", "x": 1.50} ], "more": null }'
    assert await models.body() == source.now


async def test_close_cancels_a_request(models: Catalog, source: Source) -> None:
    source.may_answer.clear()
    call = asyncio.create_task(prompt_price(models))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await models.close()
    with pytest.raises(asyncio.CancelledError):
        await call
