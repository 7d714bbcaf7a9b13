"""Grants of the operator's money: none without a ceiling, and never more than the ceiling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cli import invoke_cli
from support.service import App, bearer, chat_body, run_service
from support.upstream import Upstream, good

from wattfare_mw.errors import WattfareBudgetExceededError, WattfareError
from wattfare_mw.service.ledger import rules
from wattfare_mw.service.records import GrantBudget, Terms

KEY = {"WATTFARE_UPSTREAM_KEY": "sk-operator-0123456789"}
amounts = st.integers(0, 10**12)


@given(amounts, amounts, st.none() | amounts, st.booleans())
def test_admit_grant_rule(held: int, cap: int, ceiling: int | None, operator_pays: bool) -> None:
    terms = Terms(operator_pays=operator_pays, grant_ceiling=ceiling, grant_max=10**12)
    try:
        rules.admit_grant(held, GrantBudget(1, cap, 0), terms)
    except WattfareBudgetExceededError:
        assert operator_pays
        assert held + cap > ceiling
    except WattfareError as refused:
        assert (operator_pays, ceiling) == (True, None)
        assert refused.http_status == 403  # noqa: PT017
    else:
        assert not operator_pays or held + cap <= ceiling


def ask(app: App, max_usd: float | None):
    return app.http.post(
        "/grants",
        json={"requests": 5, "maxUsd": max_usd},
        headers=bearer(app.keys.publishable_key),
    )


def test_grants_of_an_app_hold_at_most_their_ceiling(tmp_path: Path, upstream: Upstream) -> None:
    upstream.script = good
    options = ("--upstream", upstream.url, "--user-ceiling-usd", "1", "--grant-ceiling-usd", "2")
    options += ("--grant-max-usd", "2.5")
    with run_service(tmp_path, *options, env=KEY) as service:
        app, other = service.app(), service.app()
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: ask(app, 0.5), range(10)))
        granted = [answer for answer in answers if answer.status_code == 200]
        refused = [answer.json()["error"]["code"] for answer in answers if answer not in granted]
        assert len(granted) == 4
        assert set(refused) == {"budget_exceeded"}
        # Another app has its own ceiling.
        assert ask(other, 2.1).status_code == 402
        assert ask(other, 2).status_code == 200
        # Such a grant pays for a call.
        headers = {**app.auth, "x-wattfare-grant": granted[0].json()["grantToken"]}
        body = {"model": "fake/model", "messages": [{"role": "user", "content": "x"}]}
        assert app.http.post("/chat/completions", json=body, headers=headers).status_code == 200
        app.close()
        other.close()


@pytest.mark.parametrize("more", [(), ("--upstream", "http://127.0.0.1:9/v1")])
def test_grant_ceiling_applies_to_the_operators_money_only(more: tuple[str, ...]) -> None:
    command = invoke_cli("serve", "--grant-ceiling-usd", "2", *more)
    assert command.exit_code == 2
    assert "--grant-ceiling-usd needs" in command.stderr


def test_grant_ceiling_must_be_an_amount() -> None:
    options = ("--upstream", "http://127.0.0.1:9/v1", "--user-ceiling-usd", "1")
    command = invoke_cli("serve", *options, "--grant-ceiling-usd", "none", env=KEY)
    assert command.exit_code == 2
    assert "--grant-ceiling-usd must be an amount" in command.stderr


def test_grant_without_a_cap_gets_the_operators_default(tmp_path: Path) -> None:
    # It pays for one call of three words, and not for a second.
    with run_service(tmp_path, "--grant-default-usd", "0.000009") as service, service.app() as app:
        headers = {**app.auth, "x-wattfare-grant": ask(app, None).json()["grantToken"]}
        statuses = [
            app.http.post(
                "/chat/completions", json=chat_body("one two three"), headers=headers
            ).status_code
            for _ in range(2)
        ]
        assert statuses == [200, 402]


@pytest.mark.parametrize("amount", ["-1", "NaN", "much", "1e400", "none"])
def test_invalid_default_is_refused(tmp_path: Path, amount: str) -> None:
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    done = invoke_cli("serve", "--port", "0", "--database", database, "--grant-default-usd", amount)
    assert done.exit_code in (1, 2)
    assert "number of USD" in done.stderr or "--grant-default-usd must be an amount" in done.stderr
    assert isinstance(done.exception, SystemExit)
