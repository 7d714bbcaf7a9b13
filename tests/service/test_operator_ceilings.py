"""What one app, and all apps together, may spend of the operator's money in a month."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import invoke_cli
from support.service import App, Service, bearer, run_service
from support.upstream import Exchange, Upstream

from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.verify import verify

KEY = {"WATTFARE_UPSTREAM_KEY": "sk-operator-0123456789"}
#: A call costs 3 millionths of a dollar and reserves 313 of them while it runs.
PRICED = ("--price", "fake/model=1/1")
CALL = {"model": "fake/model", "max_tokens": 10}


def good(exchange: Exchange) -> None:
    exchange.answer(
        {
            "id": "g",
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "x"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    )


def serving(tmp_path: Path, upstream: Upstream, *options: str, env=KEY):
    upstream.script = good
    paid = ("--upstream", upstream.url, "--user-ceiling-usd", "none", *PRICED)
    return run_service(tmp_path, *paid, *options, env=env)


def spend(app: App, user: str, most: int = 100) -> tuple[int, dict]:
    """Calls until a refusal. Returns the number of answered calls and the refusal."""
    for calls in range(most):
        answer = app.chat("x", user, **CALL)
        if answer.status_code != 200:
            assert answer.status_code == 402, answer.text
            return calls, answer.json()["error"]
    raise AssertionError("it was never refused")


def billed(service: Service, apps: list[App]) -> float:
    return sum(app.status(user)["usage"]["monthlyUsd"] for app in apps for user in ("u1", "u2"))


def connected(service: Service, count: int) -> list[App]:
    apps = [service.app() for _ in range(count)]
    for app in apps:
        app.connect("u1")
        app.connect("u2")
    return apps


def test_users_of_an_app_share_its_ceiling(tmp_path: Path, upstream: Upstream) -> None:
    with serving(tmp_path, upstream, "--app-ceiling-usd", "0.0004") as service:
        one, other = apps = connected(service, 2)
        first, refusal = spend(one, "u1")
        assert first > 10
        assert (refusal["code"], refusal["limitedBy"]) == ("budget_exceeded", "ceiling")
        assert "this app" in refusal["message"]
        # The rest would reveal what the other users spend.
        assert "remainingUsd" not in refusal
        assert one.status("u1")["remainingUsd"] is None
        assert spend(one, "u2")[0] == 0
        assert billed(service, [one]) <= 0.0004
        # Another app has its own ceiling.
        assert spend(other, "u1")[0] == first
        for app in apps:
            app.close()
        assert read_database(service.database, verify) == []


def test_all_apps_share_the_total_ceiling(tmp_path: Path, upstream: Upstream) -> None:
    options = ("--total-ceiling-usd", "0.0004", "--grant-ceiling-usd", "1")
    with serving(tmp_path, upstream, *options) as service:
        one, other = apps = connected(service, 2)
        first, refusal = spend(one, "u1")
        assert first > 10
        assert refusal["limitedBy"] == "ceiling"
        assert "all apps" in refusal["message"]
        assert "remainingUsd" not in refusal
        assert spend(other, "u2")[0] == 0
        assert billed(service, apps) <= 0.0004
        # A grant spends the operator's money too.
        asked = {"requests": 5, "maxUsd": 0.5}
        grant = one.http.post("/grants", json=asked, headers=bearer(one.keys.publishable_key))
        headers = {**one.auth, "x-wattfare-grant": grant.json()["grantToken"]}
        body = {"messages": [{"role": "user", "content": "x"}], **CALL}
        answer = one.http.post("/chat/completions", json=body, headers=headers)
        assert answer.status_code == 402
        assert answer.json()["error"]["limitedBy"] == "ceiling"
        for app in apps:
            app.close()
        assert read_database(service.database, verify) == []


def test_ceiling_can_be_set_in_the_environment(tmp_path: Path, upstream: Upstream) -> None:
    env = {**KEY, "WATTFARE_TOTAL_CEILING_USD": "0"}
    with serving(tmp_path, upstream, env=env) as service:
        [app] = connected(service, 1)
        assert spend(app, "u1")[0] == 0
        app.close()


@pytest.mark.parametrize("option", ["--app-ceiling-usd", "--total-ceiling-usd"])
def test_ceiling_applies_to_the_operators_money_only(option: str) -> None:
    command = invoke_cli("serve", option, "2", "--upstream", "http://127.0.0.1:9/v1")
    assert command.exit_code == 2
    assert f"{option} needs" in command.stderr
    paid = ("--upstream", "http://127.0.0.1:9/v1", "--user-ceiling-usd", "1")
    command = invoke_cli("serve", *paid, option, "much", env=KEY)
    assert command.exit_code == 2
    assert f"{option} must be an amount" in command.stderr
