"""The prices that the operator sets: which one applies, and what a call costs by it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from support.service import App, run_service
from support.upstream import Upstream, reporting

from wattfare_mw import WattfareError
from wattfare_mw.service import Settings
from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.models import catalog
from wattfare_mw.service.models.catalog import Catalog, NoListError
from wattfare_mw.service.models.own_prices import OwnPrices, read_price

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
#: An answer without a cost, as from a local server.
UNCOSTED = reporting(USAGE, ("one ", "two ", "three"))


def billed(app: App) -> Decimal:
    return Decimal(str(app.status()["usage"]["monthlyUsd"]))


# -- the format


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("0/0", (0, 0, None)),
        ("0.10/0.40", ("0.10", "0.40", None)),
        (".5/2.", ("0.5", 2, None)),
        ("1/2/0.1", (1, 2, "0.1")),
        ("1000000/0.000000000001", (1_000_000, "0.000000000001", None)),
    ],
)
def test_price_is_parsed(text: str, amounts: tuple) -> None:
    read = read_price("m", text)
    wanted = tuple(None if each is None else Decimal(each) for each in amounts)
    assert (read.input, read.output, read.cached) == wanted


BAD = ["", "1", "1/", "/1", "1/2/3/4", "-1/2", "1/-2", "a/b", "NaN/1", "inf/1", "1e3/1", "1 / 2"]
BAD += [
    "1,5/2",
    "$1/$2",
    "1000001/1",
    "1/2/1000001",
    "1/2/",
    "0x1/1",
    "\u0661/1",
    "1/2\n",
    "1" * 99,
]


@pytest.mark.parametrize("text", BAD)
def test_invalid_price_is_refused(text: str) -> None:
    with pytest.raises(WattfareError, match="MODEL=IN/OUT") as raised:
        Settings(prices={"m": text})
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize("model", ["", "m" * 257])
def test_invalid_model_pattern_is_refused(model: str) -> None:
    with pytest.raises(WattfareError, match="MODEL=IN/OUT"):
        Settings(prices={model: "1/2"})


def test_price_of_a_token() -> None:
    price = OwnPrices({"m": "0.10/0.40"}).named("m")
    assert price is not None
    assert (price.rates.prompt, price.rates.completion) == (Decimal("1e-7"), Decimal("4e-7"))
    assert price.bound(3_000_000, 2_000_000) == 1_100_000_000
    # Cached tokens may cost more than others.
    dear = OwnPrices({"m": "1/2/5"}).named("m")
    assert dear is not None
    assert dear.bound(1, 0) == 5000


# -- which price applies


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("qwen3", 1),
        ("qwen3:8b", 2),
        ("qwen2", 3),
        ("Qwen2", None),  # names are exact
        ("m1", 4),
        ("m12", None),
        ("x", None),
        ("*", None),
        ("a\nqwen", None),
        ("qwen\n", 3),
    ],
)
def test_exact_name_wins_over_the_longest_pattern(model: str, price: int | None) -> None:
    own = OwnPrices({"*": "9/9", "qwen*": "3/3", "qwen3*": "2/2", "qwen3": "1/1", "m[0-9]": "4/4"})
    found = own.named(model)
    per_million = found and found.bound(10**6, 0) // 10**9
    assert per_million == price
    assert own.default is not None


LISTED = {
    "data": [
        {"id": "listed", "pricing": {"prompt": "0.000001", "completion": "0.000002"}},
        {"id": "router", "pricing": {"prompt": "-1", "completion": "-1"}},
        {"id": "unpriced"},
        {"id": "known"},
    ]
}


async def cost(
    prices: dict[str, str], model: str, *, local: bool = False, no_list: bool = False
) -> int | str | None:
    """The price of a million prompt tokens in USD, or the code of the error."""

    async def fetch() -> bytes:
        if no_list:
            raise NoListError
        return json.dumps(LISTED).encode()

    models = Catalog(fetch, "http://upstream.invalid", OwnPrices(prices), default_first=local)
    try:
        price = await models.price(model)
    except WattfareError as error:
        return error.code
    return None if price is None else price.bound(1_000_000, 0) // 10**9


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    price = OwnPrices({"known": "7/7"}).named
    monkeypatch.setattr(catalog, "published", lambda model, _url: price(model))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("model", ["listed", "router", "unpriced", "known", "not listed"])
async def test_price_by_name_wins_over_all_others(model: str) -> None:
    assert await cost({model: "5/5"}, model) == 5
    assert await cost({f"{model[:3]}*": "5/5", "*": "6/6"}, model) == 5
    assert await cost({"?*": "5/5"}, model, no_list=True) == 5


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("model", "without", "price"),
    [
        ("listed", 1, 1),
        ("known", 7, 7),
        ("router", None, 6),
        ("unpriced", None, 6),
        ("not listed", "invalid_request", 6),
    ],
)
async def test_default_applies_to_models_without_another_price(
    model: str, without: int | str | None, price: int
) -> None:
    assert await cost({}, model) == without
    assert await cost({"*": "6/6"}, model) == price
    no_list = 7 if model == "known" else 6
    assert await cost({"*": "6/6"}, model, no_list=True) == no_list


@pytest.mark.usefixtures("published")
async def test_published_price_of_another_upstream_is_not_used() -> None:
    assert await cost({}, "known", local=True) == 7
    assert await cost({"*": "6/6"}, "known", local=True) == 6
    assert await cost({"*": "0/0"}, "listed", local=True) == 1


# -- real calls


@pytest.mark.parametrize("given", ["--price", "WATTFARE_PRICE"])
def test_free_model_works_with_a_cap_of_0(
    tmp_path: Path, database: str, upstream: Upstream, given: str
) -> None:
    upstream.script = UNCOSTED
    upstream.models = {"data": [{"id": "llama3.2:latest"}]}  # Ollama also knows it as llama3.2
    options, env = ["--upstream", upstream.url], {}
    if given == "--price":
        options += ["--price", "llama3.2=0/0", "--price", "*=0.10/0.40"]
    else:
        env = {"WATTFARE_PRICE": "llama3.2=0/0\n *=0.10/0.40"}
    with (
        run_service(tmp_path, *options, env=env, database=database) as service,
        service.app() as app,
    ):
        app.connect(monthlyUsd=0)
        for stream in (False, True):
            answer = app.chat(model="llama3.2", stream=stream)
            assert answer.status_code == 200, answer.text
            assert "three" in answer.text
            assert app.chat(model="other", stream=stream).status_code == 402
        assert [call.json["model"] for call in upstream.calls] == ["llama3.2"] * 2
        assert billed(app) == 0
        rows = read_database(database, lambda connection: list(rows_of(connection)))
        assert [(row["reserved_nanos"], row["billed_nanos"]) for row in rows] == [(0, 0)] * 2
        assert {row["ended"] for row in rows} == {"completed"}


@pytest.mark.parametrize("stream", [False, True])
def test_call_is_billed_at_the_operators_price(
    tmp_path: Path, upstream: Upstream, stream: bool
) -> None:
    upstream.script = UNCOSTED
    options = ("--upstream", upstream.url, "--price", "fake/m*=3/15", "--price", "*=0.10/0.40")
    with run_service(tmp_path, *options) as service, service.app() as app:
        app.connect(monthlyUsd=10)
        assert app.chat(model="fake/model", stream=stream).status_code == 200
        assert billed(app) == Decimal("0.0045")
        assert app.chat(model="fake/unpriced", stream=stream).status_code == 200
        assert billed(app) == Decimal("0.0045") + Decimal("0.00014")


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_setup_of_the_docs(tmp_path: Path, upstream: Upstream, stream: bool) -> None:
    """Its models are free, even one whose name has a published price elsewhere."""
    upstream.script = UNCOSTED
    upstream.models = {"object": "list", "data": [{"id": "llama3.2:latest"}, {"id": "gpt-4o"}]}
    with (
        run_service(tmp_path, "--upstream", upstream.url, "--price", "*=0/0") as service,
        service.app() as app,
    ):
        app.connect(monthlyUsd=0)
        for model in ("llama3.2:latest", "llama3.2", "gpt-4o"):
            answer = app.chat(model=model, stream=stream)
            assert answer.status_code == 200, answer.text
        assert billed(app) == 0
