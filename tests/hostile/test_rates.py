"""One user, one address or one app never uses up the rate limits of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cli import invoke_cli
from support.drivers import KINDS, MODELS
from support.fake_wattfare import SECRET_KEY, FakeWattfare
from support.service import App, Service, bearer, run_service
from support.upstream import Upstream, good

from wattfare_mw.errors import WattfareRateLimitError
from wattfare_mw.middleware import gate
from wattfare_mw.service.api import rate_limits
from wattfare_mw.service.api.rate_limits import Counters, RateLimits, address_of

KEY = {"WATTFARE_UPSTREAM_KEY": "sk-operator-0123456789"}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, watch: Any) -> Iterator[Service]:
    """A service that allows ten calls a minute for each user and twenty for each app."""
    options = ("--calls-per-minute-per-user", "10", "--calls-per-minute-per-app", "20")
    with run_service(tmp_path_factory.mktemp("slow"), *options) as service, watch(service):
        yield service


@pytest.fixture
def app(slow: Service) -> Iterator[App]:
    with slow.app() as app:
        yield app


def session(app: App, user: str) -> httpx.Response:
    return app.http.post("/sessions", json={"appUserId": user}, headers=app.auth)


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "rate_limited"
            assert 1 <= int(answer.headers["retry-after"]) <= 24 * 3600
    return Counter(answer.status_code for answer in answers)


# -- users


def test_greedy_accounts_do_not_use_up_the_sessions_of_an_app(app: App) -> None:
    """Four accounts with 30 sessions each used to be enough."""
    for number in range(12):
        statuses([session(app, f"greedy{number}") for _ in range(32)])
    for number in range(30):
        assert session(app, f"quiet{number}").status_code == 200


def test_greedy_users_do_not_use_up_the_calls_of_an_app(app: App) -> None:
    for user in ("one", "two", "three", "quiet"):
        app.connect(user)
    assert statuses([app.chat(user="one") for _ in range(15)]) == {200: 10, 429: 5}
    assert statuses([app.chat(user="two") for _ in range(15)])[200] < 5
    assert statuses([app.chat(user="three") for _ in range(15)])[200] < 5
    assert app.chat(user="quiet").status_code == 200
    # Another app is not affected.
    with app.service.app() as other:
        other.connect("one")
        assert other.chat(user="one").status_code == 200


def test_call_over_the_rate_is_refused_before_its_body_is_read(app: App) -> None:
    app.connect("one")
    for _ in range(10):
        app.chat(user="one")
    answer = app.http.post("/chat/completions", content=b"{", headers=app.paid_by("one"))
    assert answer.status_code == 429
    assert "this user" in answer.json()["error"]["message"]


def test_grant_is_counted_like_a_user(app: App) -> None:
    key = bearer(app.keys.publishable_key)
    made = app.http.post("/grants", json={"requests": 50}, headers=key).json()["grantToken"]
    headers = {**app.auth, "x-wattfare-grant": made}
    body = {"model": "wattfare/echo", "messages": [{"role": "user", "content": "x"}]}
    answers = [app.http.post("/chat/completions", json=body, headers=headers) for _ in range(12)]
    assert statuses(answers) == {200: 10, 429: 2}


def test_made_up_grants_do_not_use_up_the_calls_of_an_app(app: App) -> None:
    app.connect("quiet")
    body = {"model": "wattfare/echo", "messages": [{"role": "user", "content": "x"}]}
    answers = [
        app.http.post(
            "/chat/completions", json=body, headers={**app.auth, "x-wattfare-grant": f"gt_{n}"}
        )
        for n in range(30)
    ]
    assert statuses(answers) == {402: 10, 429: 20}
    assert app.chat(user="quiet").status_code == 200


def test_browser_of_a_user_has_a_rate_limit(app: App) -> None:
    tokens = {user: bearer(app.token(user)) for user in ("one", "two")}
    answers = [app.http.get("/connections", headers=tokens["one"]) for _ in range(70)]
    assert statuses(answers) == {200: 60, 429: 10}
    assert app.http.post("/connections", headers=tokens["one"]).status_code == 429
    assert app.http.get("/connections", headers=tokens["two"]).status_code == 200


# -- addresses


def from_address(address: str, **headers: str) -> dict[str, str]:
    """The headers that a proxy on this machine sends for a client at this address."""
    return {**headers, "x-forwarded-for": address}


def test_one_address_does_not_use_up_the_grants_of_an_app(app: App) -> None:
    def ask(address: str) -> httpx.Response:
        headers = from_address(address, **bearer(app.keys.publishable_key))
        return app.http.post("/grants", json={"requests": 1}, headers=headers)

    assert statuses([ask("203.0.113.1") for _ in range(40)]) == {200: 30, 429: 10}
    statuses([ask(f"203.0.113.{number}") for number in range(2, 5) for _ in range(40)])
    assert ask("203.0.113.9").status_code == 200


def test_guessed_keys_are_limited_and_valid_keys_are_not(app: App) -> None:
    wrong = from_address("203.0.113.20", **bearer("sk_test_0_guessed"))
    right = from_address("203.0.113.20", **app.auth)
    answers = [app.http.get("/models", headers=wrong) for _ in range(310)]
    assert statuses(answers) == {401: 300, 429: 10}
    assert app.http.get("/models", headers=right).status_code == 200
    elsewhere = from_address("203.0.113.21", **bearer("sk_test_0_guessed"))
    assert app.http.get("/models", headers=elsewhere).status_code == 401


def test_client_cannot_choose_its_address(tmp_path: Path) -> None:
    """If the peer is not a trusted proxy, its forwarded address is ignored."""
    with (
        run_service(tmp_path, "--forwarded-allow-ips", "203.0.113.1") as service,
        service.app() as app,
    ):
        answers = [
            app.http.get(
                "/models", headers=from_address(f"198.51.100.{n % 200}", **bearer("sk_test_"))
            )
            for n in range(310)
        ]
        assert statuses(answers) == {401: 300, 429: 10}


def test_address_of_groups_equivalent_addresses() -> None:
    def group(host: str) -> str:
        return address_of({"client": (host, 1)})

    assert group("203.0.113.1") == group("::ffff:203.0.113.1") != group("203.0.113.2")
    assert group("2001:db8::1") == group("2001:db8::ffff:1") != group("2001:db8:0:1::1")
    assert address_of({"client": None}) == address_of({}) == ""


# -- grants that the operator pays for


def test_grant_spends_no_more_than_its_own_cap(
    tmp_path: Path, upstream: Upstream, watch: Any
) -> None:
    """Otherwise one POST could spend a day's ceiling."""
    upstream.script = good
    options = ("--upstream", upstream.url, "--user-ceiling-usd", "1", "--grant-ceiling-usd", "8")
    options += ("--grant-max-usd", "0.5")
    with (
        run_service(tmp_path, *options, env=KEY) as service,
        watch(service, "fake/model"),
        service.app() as app,
    ):

        def ask(address: str, usd: float = 8) -> httpx.Response:
            headers = from_address(address, **bearer(app.keys.publishable_key))
            return app.http.post("/grants", json={"requests": 9, "maxUsd": usd}, headers=headers)

        # Each grant is lowered to half a dollar. One address may hold a quarter of the ceiling.
        assert statuses([ask("203.0.113.1") for _ in range(6)]) == {200: 4, 429: 2}
        assert statuses([ask("203.0.113.2", 0.25) for _ in range(9)]) == {200: 8, 429: 1}
        for number in range(3, 5):
            assert statuses([ask(f"203.0.113.{number}") for _ in range(5)]) == {200: 4, 429: 1}
        refused = ask("203.0.113.5")
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")


@pytest.mark.parametrize("more", [(), ("--upstream", "http://127.0.0.1:9/v1")])
def test_grant_limit_applies_to_the_operators_money(more: tuple[str, ...]) -> None:
    command = invoke_cli("serve", "--grant-max-usd", "2", *more)
    assert command.exit_code == 2
    assert "--grant-max-usd needs" in command.stderr


# -- in memory


def test_memory_of_counters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_COUNTERS", 100)
    limits = RateLimits(calls_per_user=3, calls_per_app=10**6)
    for _ in range(3):
        limits.call("app", "user", None)
    for number in range(50):
        limits.call("app", f"other{number}", None)
    with pytest.raises(WattfareRateLimitError):
        limits.call("app", "user", None)
    for number in range(1000):
        limits.call("app", f"more{number}", None)
    assert max(map(len, limits._memory._kinds.values())) <= 100


def test_counters_reset_and_are_removed() -> None:
    now = 1000.0
    counters = Counters(lambda: now)

    def add(name: str) -> float:
        return counters.perform(rate_limits._Count("kind", (name,)))

    for number in range(50):
        add(f"user{number}")
    assert add("user0") == 2
    now += 60
    assert add("user0") == 1
    for number in range(50, 80):
        add(f"user{number}")
    assert len(counters._kinds["kind"]) == 31


@pytest.mark.parametrize("step", [-30, -3600, 30, 3600])
def test_clock_change_makes_no_client_wait_longer(step: int) -> None:
    now = 1.7e9 + 1 / 3
    limits = RateLimits(calls_per_user=3, clock=lambda: now)
    for _ in range(4):
        with suppress(WattfareRateLimitError):
            limits.call("app", "user", None)
    with pytest.raises(WattfareRateLimitError):
        limits.call("app", "user", None)
    now += step
    with suppress(WattfareRateLimitError):
        limits.call("app", "user", None)
    now += 60
    limits.call("app", "user", None)


# -- the middleware


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_one_user_does_not_use_up_the_model_lists_of_the_app(
    fake: FakeWattfare, interface: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = KINDS[interface](
        resolve_user=lambda request: "u", secret_key=SECRET_KEY, base_url=fake.url
    )
    first = driver.request("GET", MODELS)
    assert [driver.request("GET", MODELS).body for _ in range(20)] == [first.body] * 20
    assert len(fake.exchanges) == 1
    monkeypatch.setattr(gate, "LISTING_SECONDS", -1.0)
    driver.middleware._gate._listing = (0.0, b"")
    for _ in range(2):
        assert driver.request("GET", MODELS).status == 200
    assert len(fake.exchanges) == 3
    driver.close()
