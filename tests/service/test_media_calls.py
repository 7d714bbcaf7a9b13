"""Images, files, audio, fallbacks and variants of models, through a real service in front of a fake
upstream: what is reserved, sent and billed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from support.media import (
    audio_part,
    data_url,
    file_part,
    image_part,
    mp3,
    pdf,
    png,
    wav,
)
from support.service import App, Service, run_service
from support.upstream import Exchange, Upstream, completion_of

from wattfare_mw.service.chat import prompt_bound
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.chat.families import Families
from wattfare_mw.service.chat.usage import TokenCounts
from wattfare_mw.service.models import variants

REFUSE = {"x-wattfare-on-low-budget": "refuse"}
TOKENS = 100
CLAUDE, GPT = "anthropic/claude-sonnet-4.5", "openai/gpt-4o"
GEMINI, DEAR = "google/gemini-2.5-flash", "dear/model"
MODELS = [
    {"id": CLAUDE, "pricing": {"prompt": "0.000003", "completion": "0.000015", "image": "0.001"}},
    {"id": GPT, "pricing": {"prompt": "0.0000025", "completion": "0.00001", "image": "0.001"}},
    {
        "id": GEMINI,
        "pricing": {"prompt": "0.0000003", "completion": "0.0000025", "audio": "0.000001"},
    },
    {"id": DEAR, "pricing": {"prompt": "0.00001", "completion": "0.00005"}},
    {"id": "cheap/model:free", "pricing": {"prompt": "0", "completion": "0"}},
]
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def openrouter(tmp_path_factory, _upstream: Upstream) -> Iterator[Service]:
    _upstream.models = {"data": MODELS}
    folder = tmp_path_factory.mktemp("media")
    options = ("--upstream", _upstream.url, "--provider", "openrouter")
    with run_service(folder, *options) as service:
        with service.app() as app:
            assert app.http.get("/models", headers=app.auth).status_code == 200
        yield service


@pytest.fixture
def app(openrouter: Service, upstream: Upstream) -> Iterator[App]:
    upstream.script = answering()
    with openrouter.app() as app:
        yield app


def answering(model: str = GPT, **usage: Any):
    """A script that answers two words with this usage."""
    fields = {"usage": {"prompt_tokens": 300, "completion_tokens": 2, **usage}, "model": model}

    def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            exchange.answer({**completion_of("two words"), **fields})
            return
        exchange.start_stream()
        for word in ("two ", "words"):
            delta = {"index": 0, "delta": {"content": word}}
            exchange.event({"id": "g-1", "model": model, "choices": [delta]})
        exchange.event({"id": "g-1", "model": model, "choices": [], **fields})
        exchange.done()

    return script


def body_of(*parts: Any, model: str = GPT, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [TEXT, *parts]}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, **fields}


def ask(app: App, body: dict[str, Any]) -> httpx.Response:
    headers = {**app.paid_by("u1"), **REFUSE}
    return app.http.post("/chat/completions", json=body, headers=headers)


def text_of(body: dict[str, Any]) -> int:
    """The bound of a prompt's text, without its attachments."""
    request = chat_request.read(json.dumps(body).encode())
    return prompt_bound.bound({**request.body, "messages": request.text})


def needs(app: App, body: dict[str, Any], nanos: int) -> httpx.Response:
    """Checks that the call needs exactly this budget. Returns its answer."""
    app.connect(monthlyUsd=float(Decimal(nanos - 1).scaleb(-9)))
    refused = ask(app, body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    app.connect(monthlyUsd=float(Decimal(nanos).scaleb(-9)))
    answer = ask(app, body)
    assert answer.status_code == 200, answer.text
    return answer


def billed(app: App) -> int:
    status = app.http.get("/status?appUserId=u1", headers=app.auth)
    return int(Decimal(json.loads(status.text, parse_float=str)["usage"]["monthlyUsd"]).scaleb(9))


@pytest.mark.parametrize(
    ("part", "image"),
    [
        (image_part(data_url(png(512, 512))), 19 * 19),
        (image_part("https://example.com/a.jpg"), 1600),
        (image_part(data_url(b"GIF89a" + b"\1" * 50)), 1600),
    ],
    ids=["data", "url", "gif"],
)
def test_image_is_reserved_and_billed(app: App, upstream: Upstream, part: Any, image: int) -> None:
    body = body_of(part, model=CLAUDE)
    tokens = text_of(body) + image + 32
    needs(app, body, tokens * 3000 + TOKENS * 15_000 + 1_000_000)
    assert upstream.calls[-1].json["messages"] == body["messages"]
    # Besides its tokens, the image has its own price.
    assert billed(app) == 300 * 3000 + 2 * 15_000 + 1_000_000


def test_two_images_in_a_stream(app: App) -> None:
    part = image_part(data_url(png(512, 512)))
    body = body_of(part, part, model=CLAUDE, stream=True)
    needs(app, body, (text_of(body) + 2 * (361 + 32)) * 3000 + TOKENS * 15_000 + 2_000_000)
    assert billed(app) == 300 * 3000 + 2 * 15_000 + 2_000_000


def test_tokenizer_admits_a_prompt_that_the_byte_bound_refuses(
    app: App, upstream: Upstream
) -> None:
    pytest.importorskip("bpe_openai")
    words = {"type": "text", "text": "All happy families are alike. " * 500}
    budget = {}
    for model, prompt, completion in ((GPT, 2500, 10_000), (CLAUDE, 3000, 15_000)):
        body = body_of(words, model=model)
        # Half of what the prompt's bytes would need.
        app.connect(monthlyUsd=text_of(body) * prompt / 2e9 + TOKENS * completion / 1e9)
        budget[model] = ask(app, body)
        assert upstream.calls == [] or upstream.calls[-1].json["max_tokens"] == TOKENS
    assert budget[GPT].status_code == 200
    assert "x-wattfare-max-tokens" not in budget[GPT].headers
    # Another model's tokenizer may give more tokens for the same text.
    assert budget[CLAUDE].status_code == 402


def test_tokenizer_lowers_the_limit_less(app: App, upstream: Upstream) -> None:
    pytest.importorskip("bpe_openai")
    words = {"type": "text", "text": "All happy families are alike. " * 500}
    body = body_of(words, model=GPT, max_tokens=2000)
    app.connect(monthlyUsd=text_of(body) * 2500 / 1e9 + 1000 * 10_000 / 1e9)
    answer = app.http.post("/chat/completions", json=body, headers=app.paid_by("u1"))
    assert answer.status_code == 200
    assert upstream.calls[-1].json["max_tokens"] == 2000


@pytest.mark.parametrize("sound", [wav(10), mp3(10)], ids=["wav", "mp3"])
def test_audio_is_billed_at_its_own_price(app: App, upstream: Upstream, sound: bytes) -> None:
    upstream.script = answering(
        GEMINI, prompt_tokens=900, prompt_tokens_details={"audio_tokens": 320}
    )
    body = body_of(audio_part(sound), model=GEMINI)
    request = chat_request.read(json.dumps(body).encode())
    assert request.attachments is not None
    counts = prompt_bound.counts(text_of(body), request.attachments, Families().of(GEMINI))
    assert 320 + 32 <= counts.audio <= 352 + 32
    needs(
        app,
        body,
        (counts.prompt - counts.audio) * 300 + counts.audio * 1000 + TOKENS * 2500,
    )
    assert billed(app) == 580 * 300 + 320 * 1000 + 2 * 2500


def test_text_is_not_bounded_at_the_audio_price(app: App) -> None:
    body = body_of(model=GEMINI)
    needs(app, body, text_of(body) * 300 + TOKENS * 2500)


def test_pdf_is_reserved_and_billed(app: App, upstream: Upstream) -> None:
    upstream.script = answering(GEMINI)
    body = body_of(file_part(pdf(["one", "two\n" * 2000])), model=GEMINI)
    text = len("two\r\n" * 2000) - 2  # more than a usual page
    tokens = text_of(body) + len("a.pdf") + 32 + (258 + 3000) + (258 + text)
    # OpenRouter charges for each page that it must parse itself.
    needs(app, body, tokens * 300 + TOKENS * 2500 + 2 * 2_200_000)
    assert upstream.calls[-1].json["messages"] == body["messages"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answered", "bill"),
    [
        (GEMINI, 300 * 300 + 2 * 2500),
        (f"{GEMINI}-preview-09", 300 * 300 + 2 * 2500),
        ("gemini-2.5-flash", 300 * 300 + 2 * 2500),
        (DEAR, 300 * 10_000 + 2 * 50_000),
        ("another/model", 300 * 10_000 + 2 * 50_000),
        ("", 300 * 10_000 + 2 * 50_000),
    ],
)
def test_most_expensive_fallback_is_reserved(
    app: App, upstream: Upstream, answered: str, bill: int, stream: bool
) -> None:
    """The model that answers is billed. If the answer does not name it, the most expensive model is
    billed."""
    upstream.script = answering(answered)
    body = body_of(model=GEMINI, models=[GEMINI, DEAR], stream=stream)
    needs(app, body, text_of(body) * 10_000 + TOKENS * 50_000)
    assert upstream.calls[-1].json["models"] == [GEMINI, DEAR]
    assert billed(app) == bill


def test_most_expensive_fallback_sets_the_limit(app: App, upstream: Upstream) -> None:
    body = body_of(model=GEMINI, models=[DEAR])
    app.connect(monthlyUsd=(text_of(body) * 10_000 + 40 * 50_000) / 1e9)
    answer = app.http.post("/chat/completions", json=body, headers=app.paid_by("u1"))
    assert answer.headers["x-wattfare-max-tokens"] == "40"
    assert upstream.calls[-1].json["max_tokens"] == 40


def test_fallbacks_are_found_by_their_aliases() -> None:
    names = {"best": DEAR, "fast": GEMINI}
    body = body_of(model="fast", models=["fast", "best", GPT])
    request = chat_request.read(json.dumps(body).encode())
    assert request.models == ("fast", "best", GPT)
    renamed = request.renamed(names)
    assert renamed.models == (GEMINI, DEAR, GPT)
    assert renamed.body["model"] == GEMINI
    assert renamed.body["models"] == [GEMINI, DEAR, GPT]
    assert request.renamed({"x": "y"}) is request


def test_fallbacks_without_a_model(app: App, upstream: Upstream) -> None:
    body = body_of(models=[GEMINI])
    del body["model"]
    upstream.script = answering(GEMINI)
    app.connect(monthlyUsd=1)
    assert ask(app, body).status_code == 200
    assert upstream.calls[-1].json["model"] == GEMINI


@pytest.mark.parametrize("variant", ["nitro", "floor", "exacto"])
def test_variant_has_the_price_of_its_model(app: App, upstream: Upstream, variant: str) -> None:
    body = body_of(model=f"{GEMINI}:{variant}")
    needs(app, body, text_of(body) * 300 + TOKENS * 2500)
    sent = upstream.calls[-1].json
    assert sent["model"] == f"{GEMINI}:{variant}"
    assert sent["provider"] == {"max_price": {"prompt": 0.3, "completion": 2.5, "request": 0}}


def test_max_price_keeps_the_clients_preferences(app: App, upstream: Upstream) -> None:
    app.connect(monthlyUsd=1)
    part = image_part(data_url(png(9, 9)))
    body = body_of(part, model=f"{GPT}:nitro", models=[DEAR], provider={"order": ["a"]})
    assert ask(app, body).status_code == 200
    assert upstream.calls[-1].json["provider"] == {
        "order": ["a"],
        "max_price": {"prompt": 10, "completion": 50, "request": 0, "image": 0.001},
    }


@pytest.mark.parametrize("model", [f"{GEMINI}:online", "cheap/model:free:online"])
def test_online_variant_counts_as_a_search(app: App, upstream: Upstream, model: str) -> None:
    body = body_of(model=model)
    prompt, completion = (300, 2500) if model.startswith(GEMINI) else (0, 0)
    tokens = text_of(body) + variants.SEARCH_TOKENS
    needs(app, body, tokens * prompt + TOKENS * completion + 20_000_000)
    assert upstream.calls[-1].json["model"] == model


@pytest.mark.parametrize("model", [f"{GEMINI}:free", f"{GEMINI}:thinking", "nobody/knows:nitro"])
def test_other_variants_are_separate_models(app: App, upstream: Upstream, model: str) -> None:
    app.connect(monthlyUsd=1)
    refused = ask(app, body_of(model=model))
    assert refused.json()["error"]["code"] == "invalid_request"
    assert "list has no model" in refused.json()["error"]["message"]
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("name", "searches", "base"),
    [("a/b", 0, "a/b"), ("b:online:nitro", 1, "b"), ("b:free:online", 1, "b:free"), (":", 0, ":")],
)
def test_variant_names_are_parsed(name: str, searches: int, base: str) -> None:
    variant = variants.read(name)
    assert (variant.base, variant.searches) == (base, searches)


def test_images_are_billed_although_usage_does_not_count_them() -> None:
    from wattfare_mw.service.chat.meter import Meter
    from wattfare_mw.service.chat.price import Price, Rates

    price = Price(Rates(prompt=Decimal(0), completion=Decimal(0), per_image=Decimal("0.001")))
    meter = Meter(price, 10, images=3)
    meter.add_usage({"prompt_tokens": 5, "completion_tokens": 5})
    assert meter.cost() == 3_000_000 == price.bound(TokenCounts(prompt=9, images=3), 9)
