"""Models without a price whose upstream reports no cost are refused. The error names the option to
set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.service import App, Service, run_service
from support.upstream import Upstream, broken, reporting

from wattfare_mw import WattfareError
from wattfare_mw.service.chat import request as chat_request
from wattfare_mw.service.models import upstream_models
from wattfare_mw.service.models.upstream import Upstream as Provider

PRICE = "--price 'MODEL=IN/OUT'"
UNPRICED = "--allow-unpriced"
NO_COST = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def refusal(answer) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    return error["message"]


@pytest.fixture
def app(forwarding: Service):
    with forwarding.app() as app:
        app.connect(monthlyUsd=1)
        yield app


@pytest.mark.parametrize("stream", [False, True])
def test_error_names_the_option_for_a_model_without_a_price(
    app: App, upstream: Upstream, stream: bool
) -> None:
    for model in ("fake/unpriced", "fake/router"):
        message = refusal(app.chat(model=model, stream=stream))
        assert model in message
        assert PRICE in message
        assert UNPRICED in message
    message = refusal(app.chat(model="not/listed", stream=stream))
    assert "list has no model 'not/listed'" in message
    assert PRICE in message
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("provider", "allowed"), [("openrouter", True), ("ollama", False), (None, True)]
)
async def test_log_names_unpriced_calls_if_the_upstream_may_report_costs(
    upstream: Upstream, provider: str | None, allowed: bool
) -> None:
    body = {"model": "fake/unpriced", "messages": [{"role": "user", "content": "x"}]}
    request = chat_request.read(json.dumps(body).encode())
    known = Provider(upstream.url, provider=provider)
    try:
        with pytest.raises(WattfareError) as raised:
            await known.prepare(request, "r")
    finally:
        await known.close()
    assert PRICE in raised.value.message
    assert (UNPRICED in raised.value.message) is allowed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", [None, NO_COST, {**NO_COST, "cost": "much"}])
def test_upstream_without_costs_is_called_once(
    tmp_path: Path, upstream: Upstream, stream: bool, usage: dict | None
) -> None:
    with run_service(tmp_path, "--upstream", upstream.url, UNPRICED) as service:
        with service.app() as app:
            for user in ("u1", "u2"):
                app.connect(user, monthlyUsd=1)
            upstream.script = reporting({**NO_COST, "cost": 0.1})
            assert app.chat(user="u2", model="fake/unpriced", stream=stream).status_code == 200
            assert app.chat(user="u2", model="fake/unpriced", stream=stream).status_code == 200

            upstream.script = reporting(usage)
            assert app.chat(model="fake/unpriced", stream=stream).status_code == 200
            upstream.calls.clear()
            message = refusal(app.chat(user="u2", model="fake/unpriced", stream=stream))
            assert PRICE in message
            assert UNPRICED not in message  # it is set
            assert upstream.calls == []
            assert app.status("u2")["remainingUsd"] == 0.8

            # Another model, and a model with a price, still work.
            upstream.script = reporting({**NO_COST, "cost": 0.1})
            assert app.chat(user="u2", model="fake/router", stream=stream).status_code == 200
            assert app.chat(user="u2", model="fake/model", stream=stream).status_code == 200
        service.stop()
        (line,) = [line for line in service.log if "reports no cost" in line]
        assert "ERROR" in line
        assert PRICE in line
        assert "fake/unpriced" in line


def test_interrupted_answer_does_not_affect_the_next_call(
    tmp_path: Path, upstream: Upstream
) -> None:
    with (
        run_service(tmp_path, "--upstream", upstream.url, UNPRICED) as service,
        service.app() as app,
    ):
        for user in ("u1", "u2"):
            app.connect(user, monthlyUsd=1)
        upstream.script = broken
        assert "upstream" in app.chat(model="fake/unpriced", stream=True).text
        upstream.script = reporting({**NO_COST, "cost": 0.1})
        assert app.chat(user="u2", model="fake/unpriced").status_code == 200


async def test_memory_of_unpriced_models_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_models, "MAX_WITHOUT_COST", 3)
    upstream = Provider("http://upstream.invalid", allow_unpriced=True)
    for number in range(10):
        upstream._models.found_no_cost(f"m{number}")
    assert list(upstream._models._without_cost) == ["m7", "m8", "m9"]
    await upstream.close()
