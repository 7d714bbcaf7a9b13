"""An upstream that refuses the token limit of a call: its name is wrong or its value too high."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pytest
from support.service import App, chat_body, run_service
from support.upstream import Exchange, Upstream, good, run_upstream

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.models import limit_refusals
from wattfare_mw.service.models.output_limits import (
    MAX_REMEMBERED,
    LearnedLimits,
    ModelLimits,
    known,
    names_for,
    read_limits,
)
from wattfare_mw.service.models.provider_facts import BY_NAME
from wattfare_mw.service.models.upstream import Upstream as Provider

PRICING = {"prompt": "0.000001", "completion": "0.000002"}
BILL = Decimal("0.000011")  # of `good`


def entry(model: str, **fields: Any) -> dict[str, Any]:
    return {"id": model, "pricing": PRICING, **fields}


MODELS = [
    *(entry(f"any/{n}") for n in range(60)),
    entry("openai/gpt-4-turbo"),
    entry("openai/gpt-4"),
    entry("openai/o3-mini"),
    entry("listed/openrouter", top_provider={"max_completion_tokens": 1000}),
    entry("listed/litellm", model_info={"max_output_tokens": 1001, "max_tokens": 1001}),
    entry("listed/groq", max_completion_tokens=1002, context_window=131072),
    entry("listed/google", outputTokenLimit=1003, inputTokenLimit=1_000_000),
    entry("listed/window", context_length=2000),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Upstream]]:
    with run_upstream() as upstream:
        upstream.models = {"data": MODELS}
        path = tmp_path_factory.mktemp("limits")
        with run_service(path, "--upstream", upstream.url) as service, service.app() as app:
            app.connect(monthlyUsd=100)
            yield app, upstream


@pytest.fixture
def app(running: tuple[App, Upstream]) -> App:
    app, upstream = running
    upstream.script = good
    upstream.calls.clear()
    return app


@pytest.fixture
def upstream(running: tuple[App, Upstream]) -> Upstream:
    return running[1]


_numbers = iter(range(60))


@pytest.fixture
def model() -> str:
    """A model that the service knows nothing about yet."""
    return f"any/{next(_numbers)}"


def billed(app: App, user: str) -> Decimal:
    return Decimal(str(app.status(user)["usage"]["monthlyUsd"]))


def limits_sent(upstream: Upstream) -> list[dict[str, int]]:
    return [
        {name: value for name, value in call.json.items() if name.startswith("max_")}
        for call in upstream.calls
    ]


def refuses(name: str, body: Any, status: int = 400) -> Callable[[Exchange], None]:
    """An upstream that refuses each call with a limit of this name."""

    def script(exchange: Exchange) -> None:
        if name in exchange.json:
            exchange.answer(body, status=status)
        else:
            good(exchange)

    return script


OPENAI = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
}
#: The refused name, the status, and the upstream's message.
UNSUPPORTED: dict[str, tuple[str, int, Any]] = {
    "openai": ("max_tokens", 400, OPENAI),
    "a gateway that embeds it": (
        "max_tokens",
        500,
        {
            "error": {
                "message": "litellm.BadRequestError: AzureException BadRequestError - "
                + json.dumps(OPENAI),
                "type": None,
                "code": "500",
            }
        },
    ),
    "openrouter": (
        "max_tokens",
        400,
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": json.dumps(OPENAI), "provider_name": "Azure"},
            }
        },
    ),
    "plain text": ("max_tokens", 422, "max_tokens: unexpected keyword argument"),
    "old azure": (
        "max_completion_tokens",
        400,
        {
            "error": {
                "message": "Unrecognized request argument supplied: max_completion_tokens",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
    ),
    "pydantic": (
        "max_completion_tokens",
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "max_completion_tokens"],
                    "msg": "Extra inputs are not permitted",
                    "input": 50,
                }
            ]
        },
    ),
    "google": (
        "max_completion_tokens",
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "max_completion_tokens"'
                    ": Cannot find field.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_refused_call_is_repeated_with_the_other_name(
    app: App, upstream: Upstream, model: str, case: str, stream: bool
) -> None:
    name, status, body = UNSUPPORTED[case]
    other = {"max_tokens": "max_completion_tokens"}.get(name, "max_tokens")
    user = f"{case}-{stream}".replace(" ", "-")
    app.connect(user, monthlyUsd=1)
    upstream.script = refuses(name, json.dumps(body) if isinstance(body, list) else body, status)
    # A client that sends `max_completion_tokens` chose the name: no upstream here gets it by
    # default.
    fields: dict[str, Any] = {} if name == "max_tokens" else {name: 50}
    assert app.chat(user=user, model=model, stream=stream, **fields).status_code == 200
    limit = fields.get(name, 8192)
    assert limits_sent(upstream) == [{name: limit}, {other: limit}]
    assert billed(app, user) == BILL  # the first try costs nothing
    # The name is remembered, even for a client that sends the other name.
    upstream.calls.clear()
    assert app.chat(user=user, model=model, max_tokens=7).status_code == 200
    assert app.chat(user=user, model=model, max_completion_tokens=7).status_code == 200
    assert limits_sent(upstream) == [{other: 7}, {other: 7}]


def test_readme_client_works_on_an_azure_deployment(
    app: App, upstream: Upstream, model: str
) -> None:
    from wattfare_mw import Wattfare

    upstream.script = refuses("max_tokens", OPENAI)
    with Wattfare(app.keys.secret_key, base_url=app.service.url) as wf:
        assert wf.user("u1").model(model).generate("hi").text == "one two three"


def test_refused_call_is_repeated_only_once(app: App, upstream: Upstream, model: str) -> None:
    def script(exchange: Exchange) -> None:
        name = next(name for name in exchange.json if name.startswith("max_"))
        exchange.answer(
            {"error": {"message": f"Unsupported parameter: {name}", "param": name}}, status=400
        )

    upstream.script = script
    answer = app.chat(model=model, user="u1")
    assert answer.status_code == 400
    assert "Unsupported parameter" in answer.json()["error"]["message"]
    assert len(upstream.calls) == 2
    # Nothing was remembered, because neither try succeeded.
    upstream.script = good
    upstream.calls.clear()
    app.chat(model=model)
    assert limits_sent(upstream) == [{"max_tokens": 8192}]


@pytest.mark.parametrize(
    ("provider", "model", "sent"),
    [
        # It ignores the other name, so the call would have no limit.
        ("ollama", "llama3", ["max_tokens"]),
        # The other name does not limit thinking, which the reservation does not include.
        ("volcengine", "doubao-seed-1-6", ["max_completion_tokens"]),
        ("dashscope", "qwen3.7-max", ["max_completion_tokens"]),
        # The reservation includes thinking.
        ("dashscope", "qwen3-32b", ["max_tokens", "max_completion_tokens"]),
    ],
)
async def test_refused_call_is_not_repeated_without_its_limit(
    upstream: Upstream, provider: str, model: str, sent: list[str]
) -> None:
    error = {"error": {"message": f"Invalid parameter: {sent[0]} must be at most 4096"}}
    upstream.script = refuses(sent[0], error)
    upstream.calls.clear()
    known_upstream = Provider(upstream.url, provider=provider, prices={"?*": "1/2"})
    body = json.dumps(chat_body(model=model, max_tokens=5000)).encode()
    job = await known_upstream.prepare(chat_request.read(body), "r")
    try:
        with nullcontext() if len(sent) > 1 else pytest.raises(WattfareError, match="at most 4096"):
            await job.start(job.bounds.most)
    finally:
        await job.close()
        await known_upstream.close()
    assert limits_sent(upstream) == [{name: 5000} for name in sent]


def test_both_tries_share_one_reservation(app: App, upstream: Upstream, model: str) -> None:
    held: list[float] = []

    def script(exchange: Exchange) -> None:
        # Another call of this user finds the cap minus one reservation.
        if "max_tokens" in exchange.json:
            held.append(1)
            exchange.answer(OPENAI, status=400)
        else:
            usage = {"prompt_tokens": 5, "completion_tokens": 10**6, "cost": 5}
            exchange.answer(
                {
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}],
                    "usage": usage,
                }
            )

    upstream.script = script
    app.connect("once", monthlyUsd=0.01)
    answer = app.chat(user="once", model=model)
    assert answer.status_code == 200
    assert billed(app, "once") <= Decimal("0.01")
    assert held == [1]


TOO_LARGE: dict[str, tuple[int, str]] = {
    "openai": (
        4096,
        (
            "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, "
            "whereas you provided 8192."
        ),
    ),
    "anthropic": (
        4096,
        (
            "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens for "
            "claude-3-haiku-20240307"
        ),
    ),
    "groq": (
        512,
        (
            "`max_tokens` must be less than or equal to `512`, the maximum value for `max_tokens` "
            "is less than the `context_window` for this model"
        ),
    ),
    "google": (
        8000,
        (
            "Unable to submit request because it has a maxOutputTokens value of 8192 but the "
            "supported range is from 1 (inclusive) to 8001 (exclusive). Update the value."
        ),
    ),
    "deepseek": (4095, "Invalid max_tokens value, the valid range of max_tokens is [1, 4095]"),
    "bedrock": (
        4095,
        (
            "The maximum tokens you requested exceeds the model limit of 4096. Try again with a "
            "maximum tokens value that is lower than 4096."
        ),
    ),
    "with a comma": (4096, "max_tokens may be at most 4,096 for this model"),
    "a dated model": (4096, "max_tokens: gpt-4o-2024-05-13 gives at most 4096 output tokens"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_added_limit_that_is_too_high_is_lowered(
    app: App, upstream: Upstream, model: str, case: str
) -> None:
    most, message = TOO_LARGE[case]
    body = {"error": {"message": message, "type": "invalid_request_error", "code": 400}}

    def script(exchange: Exchange) -> None:
        if exchange.json["max_tokens"] > most:
            exchange.answer(body, status=400)
        else:
            good(exchange)

    upstream.script = script
    assert app.chat(model=model).status_code == 200
    assert limits_sent(upstream)[1:] == [{"max_tokens": most}]
    # The limit is remembered.
    upstream.calls.clear()
    assert app.chat(model=model).status_code == 200
    assert limits_sent(upstream) == [{"max_tokens": most}]


def test_limit_of_a_client_is_never_lowered(app: App, upstream: Upstream, model: str) -> None:
    message = TOO_LARGE["openai"][1]
    upstream.script = lambda exchange: exchange.answer({"error": {"message": message}}, status=400)
    answer = app.chat(model=model, max_tokens=8192)
    assert answer.status_code == 400
    assert "4096" in answer.json()["error"]["message"]
    assert len(upstream.calls) == 1


CONTEXT = {
    "openai": "This model's maximum context length is 4097 tokens. However, you requested 8200 "
    "tokens (8 in the messages, 8192 in the completion). Please reduce the length.",
    "openrouter": "This endpoint's maximum context length is 4097 tokens. However, you requested "
    "about 8200 tokens (8 of text input, 8192 in the output).",
    "vllm": "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum "
    "context length is 4097 tokens and your request has 8 input tokens (8192 > 4097 - 8).",
    "newer vllm": "You passed 8 input tokens and requested 8192 output tokens. However, the model's"
    " context length is only 4097 tokens.",
    "together": "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 8 `inputs` tokens and "
    "8192 `max_new_tokens`",
    "anthropic": "input length and `max_tokens` exceed context limit: 8 + 8192 > 4097, decrease "
    "input length or `max_tokens` and try again",
}


@pytest.mark.parametrize("case", CONTEXT)
def test_added_limit_is_lowered_to_the_rest_of_the_window(case: str) -> None:
    body = json.dumps({"error": {"message": CONTEXT[case]}}).encode()
    found = limit_refusals.read(400, body, names=("max_tokens",), limit=8192, model="m")
    assert (found.most, found.for_this_prompt) == (4089, True)


def test_rest_of_a_window_is_not_remembered(app: App, upstream: Upstream, model: str) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.json["max_tokens"] > 4089:
            exchange.answer({"error": {"message": CONTEXT["openai"]}}, status=400)
        else:
            good(exchange)

    upstream.script = script
    assert app.chat(model=model).status_code == 200
    assert app.chat(model=model).status_code == 200
    assert limits_sent(upstream) == [{"max_tokens": 8192}, {"max_tokens": 4089}] * 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "this prompt is not allowed by our policy"),
        (400, "`temperature` is not supported with this model"),
        (400, "reasoning.max_tokens is not supported"),
        (429, "Unsupported parameter: 'max_tokens'"),
        (401, "Unsupported parameter: 'max_tokens'"),
        (400, "max_tokens_to_sample: unknown"),
        (400, "The prompt is too long: 9000 tokens, at most 4096"),
    ],
)
def test_other_refusals_do_not_change_the_limit(status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    found = limit_refusals.read(status, body, names=("max_tokens",), limit=8192, model="m")
    assert found.name is None
    assert found.most is None


@pytest.mark.parametrize(
    "piece",
    ["1,", "1", "error ", "max_tokens at most 1,000 ", "1 + 1 > ", " ", "status" + " " * 40],
)
def test_long_refusal_is_parsed_fast(piece: str) -> None:
    began = time.process_time()
    limit_refusals.read(400, piece.encode() * 10**5, names=("max_tokens",), limit=8192, model="m")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("openai/gpt-4-turbo", 4096),
        ("listed/openrouter", 1000),
        ("listed/litellm", 1001),
        ("listed/groq", 1002),
        ("listed/google", 1003),
    ],
)
def test_added_limit_stays_within_the_models_own(
    app: App, upstream: Upstream, model: str, limit: int
) -> None:
    assert app.chat(model=model).status_code == 200
    assert limits_sent(upstream) == [{"max_tokens": limit}]
    upstream.calls.clear()
    # A client's own limit is forwarded unchanged: the table can be wrong.
    assert app.chat(model=model, max_tokens=5000).status_code == 200
    assert limits_sent(upstream) == [{"max_tokens": 5000}]


def test_added_limit_leaves_space_for_the_prompt(app: App, upstream: Upstream) -> None:
    for model, window in (("openai/gpt-4", 8192), ("listed/window", 2000)):
        upstream.calls.clear()
        assert app.chat(model=model).status_code == 200
        (sent,) = limits_sent(upstream)
        assert window // 2 < sent["max_tokens"] < window
    upstream.calls.clear()
    app.chat("word " * 800, model="listed/window")  # 4,000 bytes, about 1,000 tokens
    (sent,) = limits_sent(upstream)
    assert 400 < sent["max_tokens"] < 600


def test_reasoning_model_gets_max_completion_tokens(app: App, upstream: Upstream) -> None:
    assert app.chat(model="openai/o3-mini", max_tokens=9).status_code == 200
    assert limits_sent(upstream) == [{"max_completion_tokens": 9}]


@pytest.mark.parametrize(
    ("model", "provider", "given", "names"),
    [
        ("o3", "other", (), "max_completion_tokens"),
        ("gpt-5-mini", "litellm", ("max_tokens",), "max_completion_tokens"),
        ("gpt-5.1", "azure", ("max_tokens",), "max_completion_tokens"),
        ("openai/o3", "openrouter", ("max_tokens",), "max_tokens"),
        ("gpt-oss-120b", "other", (), "max_tokens"),
        ("olmo", "other", (), "max_tokens"),
        ("llama3", "ollama", ("max_completion_tokens",), "max_tokens"),
        ("mistral-large", "mistral", ("max_completion_tokens",), "max_tokens"),
        ("gpt-4o", "openai", (), "max_completion_tokens"),
        ("gpt-4o", "openai", ("max_tokens",), "max_tokens"),
        ("doubao-seed-1-6", "volcengine", ("max_tokens",), "max_completion_tokens"),
        ("qwen-plus", "dashscope", ("max_completion_tokens",), "max_tokens"),
        ("qwen3.7-max", "dashscope", ("max_tokens",), "max_completion_tokens"),
    ],
)
def test_limit_name_depends_on_the_model(
    model: str, provider: str, given: tuple[str, ...], names: str
) -> None:
    assert names_for(model, given, BY_NAME[provider], None) == (names,)


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("gpt-4-turbo-2024-04-09", 4096),
        ("openai/gpt-4-1106-preview", 4096),
        ("gpt-4", 8192),
        ("gpt-4o", 16384),
        ("gpt-4o-2024-05-13", 4096),
        ("gpt-4o-mini", 16384),
        ("gpt-4.1-nano", 32768),
        ("gpt-35-turbo", 4096),
        ("gpt-3.5-turbo-0125", 4096),
        ("anthropic/claude-3-haiku", 4096),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", 4096),
        ("anthropic/claude-3.5-sonnet:beta", 8192),
        ("claude-3-5-haiku-20241022", 8192),
        ("claude-opus-4-1-20250805", 32000),
        ("claude-opus-4-5", 64000),
        ("models/gemini-1.5-flash", 8192),
        ("my-own-deployment", None),
        ("meta-llama/llama-3-8b", None),
    ],
)
def test_builtin_table_knows_common_models(model: str, output: int | None) -> None:
    assert known(model).output == output


def test_odd_numbers_in_a_model_list_are_ignored() -> None:
    odd: list[Any] = [0, -1, 1, True, 10**12, "many", None, [], {}, 1.5]
    data: list[Any] = [{"id": f"m{n}", "max_tokens": value} for n, value in enumerate(odd)]
    data += [{"id": "good", "max_tokens": "4096", "limits": {"max_output_tokens": 4000.0}}, "text"]
    found = read_limits(json.dumps({"data": data}).encode())
    assert found == {"good": ModelLimits(output=4000)}


def test_memory_of_learned_limits_is_bounded() -> None:
    learned = LearnedLimits()
    for n in range(MAX_REMEMBERED + 10):
        learned.note_name(f"m{n}", "max_tokens")
        learned.note_most(f"m{n}", 4096, stream=True)
    assert learned.name("m9") is None
    assert learned.name("m10") == "max_tokens"
    assert learned.most("m9", stream=True) is None
    assert learned.most("m10", stream=True) == 4096
    assert learned.most("m10", stream=False) is None
