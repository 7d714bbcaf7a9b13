"""What the operator sees of upstreams that exceed a reservation."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from support.service import App, run_service
from support.upstream import Exchange, Upstream, completion_of, good

from wattfare_mw.service.chat import prompt_bound

CALL = {"model": "fake/model", "max_tokens": 4}


def counters(app: App) -> dict[str, float]:
    answer = app.http.get(f"{app.service.url}/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE_LATEST
    return {
        sample.name.removeprefix("wattfare_upstream_").removesuffix("_total"): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_metrics_count_claims_above_the_reservation(tmp_path: Path, upstream: Upstream) -> None:
    with run_service(tmp_path, "--upstream", upstream.url, "--metrics") as service:
        app = service.app()
        app.connect()
        upstream.script = good
        app.chat(**CALL)
        assert counters(app) == {"overrun_calls": 0, "overrun_usd": 0, "spent_streams": 0}

        upstream.script = lambda exchange: exchange.answer(completion_of("x", usage={"cost": 0.5}))
        answer = app.chat(**CALL)
        reserved = prompt_bound.bound(upstream.calls[-1].json) * 1000 + 4 * 2000
        beyond = Decimal("0.5") - Decimal(reserved) / 10**9
        assert counters(app) == {
            "overrun_calls": 1,
            "overrun_usd": float(beyond),
            "spent_streams": 0,
        }

        def endless(exchange: Exchange) -> None:
            exchange.start_stream()
            while True:
                exchange.word("w ")

        upstream.script = endless
        app.chat(**CALL, stream=True)
        assert counters(app) == {
            "overrun_calls": 1,
            "overrun_usd": float(beyond),
            "spent_streams": 1,
        }
        app.close()
        service.stop()
    warned = [line for line in service.log if "more than was reserved" in line]
    assert len(warned) == 1
    assert f"${beyond}" in warned[0]
    assert answer.headers["x-request-id"] in warned[0]


def test_metrics_are_off_by_default(app: App) -> None:
    assert app.http.get(f"{app.service.url}/metrics").status_code == 404
