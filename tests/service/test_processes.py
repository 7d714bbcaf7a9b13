"""Several `wattfare serve` processes on one database: shared caps, shared revocations, and an
unavailable database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from sqlalchemy import text
from support.http_client import fetch, http_client
from support.postgres import Cluster, run_cluster
from support.service import Service, bearer, chat_body, eventually, run_service

from wattfare_mw.service.ledger.databases import read_database
from wattfare_mw.service.ledger.export import rows as rows_of
from wattfare_mw.service.ledger.verify import verify

ECHO = 3 * 1000 + 3 * 2000  # nano-dollars for three words, sent and repeated


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[list[Service]]:
    """Four processes on one PostgreSQL."""
    folder, url = tmp_path_factory.mktemp("four"), cluster.database()
    with ExitStack() as stack:
        yield [stack.enter_context(run_service(folder, database=url)) for _ in range(4)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Service]]:
    """Two processes on either database."""
    if request.param == "postgresql":
        yield request.getfixturevalue("four")[:2]
        return
    folder = tmp_path_factory.mktemp("two")
    with run_service(folder) as one, run_service(folder) as other:
        yield [one, other]


def usd(nanos: int) -> float:
    return nanos / 10**9


@pytest.mark.parametrize("stream", [False, True])
def test_cap_for_37_calls_admits_37_of_200_concurrent_calls(
    four: list[Service], stream: bool
) -> None:
    """These are the first requests of a new user, through four processes."""
    with four[0].app() as app:
        app.connect(monthlyUsd=usd(37 * ECHO))
        headers = app.paid_by("u1")
        body = chat_body("one two three", stream=stream)
        clients = [http_client(base_url=each.api) for each in four]

        def call(number: int) -> int:
            client = clients[number % 4]
            answer = client.post("/chat/completions", json=body, headers=headers)
            if stream and answer.status_code == 200:
                assert answer.text.endswith("data: [DONE]\n\n")
            return answer.status_code

        with ThreadPoolExecutor(50) as pool:
            statuses = Counter(pool.map(call, range(200)))
            # Calls that others in flight held back may be retried.
            while statuses[429]:
                again, statuses[429] = statuses[429], 0
                statuses.update(pool.map(call, range(again)))
        for client in clients:
            client.close()
        assert statuses == Counter({402: 163, 200: 37, 429: 0})
        assert app.status() | {"limits": None} == {
            "connected": True,
            "limits": None,
            "usage": {"monthlyUsd": usd(37 * ECHO)},
            "remainingUsd": 0,
        }
    app_id = app.keys.app_id
    rows = read_database(four[0].database, lambda sql: list(rows_of(sql, app_id=app_id)))
    assert [row["billed_nanos"] for row in rows] == [ECHO] * 37
    assert read_database(four[0].database, verify) == []


def test_another_process_sees_a_revocation_within_a_second(two: list[Service]) -> None:
    one, other = two
    with one.app() as app:
        app.connect()
        token = app.token()
        body = chat_body("word " * 2000, model="wattfare/echo-slow", stream=True)
        url, headers = f"{other.api}/chat/completions", app.paid_by("u1")
        with (
            http_client() as http,
            http.stream("POST", url, json=body, headers=headers) as answer,
        ):
            lines = answer.iter_lines()
            assert any("word" in line for line in lines)
            app.http.delete("/connections", headers=bearer(token))
            # Connecting again does not restore what was cut off.
            app.connect()
            began = time.monotonic()
            rest = list(lines)
            assert time.monotonic() - began < 20  # of the 100 seconds that it would take
        assert "not_connected" in rest[-2]
        assert app.status()["connected"]
        assert app.chat().status_code == 200
    assert read_database(one.database, verify) == []


def test_idempotency_keys_work_across_processes(two: list[Service]) -> None:
    one, other = two
    with one.app() as app:
        app.connect()
        app.connect("u2")

        def call(service: Service, text: str, key: str, user: str = "u1") -> httpx.Response:
            return fetch(
                f"{service.api}/chat/completions",
                "POST",
                json=chat_body(text),
                headers={**app.paid_by(user), "idempotency-key": key},
            )

        assert call(one, "a b", "k1").status_code == 200
        for service in (one, other):
            repeat = call(service, "a b", "k1")
            assert repeat.status_code == 409
            assert repeat.headers["x-should-retry"] == "false"
            assert "completed" in repeat.json()["error"]["message"]
            assert call(service, "a b c", "k1").status_code == 422
        assert call(one, "a b", "k2").status_code == 200
        assert call(one, "a b", "k1", "u2").status_code == 200
        for bad in ("", "x" * 256):
            assert call(one, "a b", bad).status_code == 400
        assert app.status()["usage"]["monthlyUsd"] == usd(2 * 2 * 3000)
        # A call that is in flight.
        slow = chat_body("word " * 2000, model="wattfare/echo-slow", stream=True)
        headers = {**app.paid_by("u1"), "idempotency-key": "k3"}
        with app.http.stream("POST", "/chat/completions", json=slow, headers=headers) as answer:
            lines = answer.iter_lines()  # keep a reference: dropping it would close the connection
            assert any("word" in line for line in lines)
            repeat = app.http.post("/chat/completions", json=slow, headers=headers)
            assert repeat.status_code == 409
            assert "in flight" in repeat.json()["error"]["message"]
        # A call that produced nothing may be retried.
        app.connect(monthlyUsd=0)
        assert call(one, "a b", "k4").status_code == 402
        app.connect()
        assert call(one, "a b", "k4").status_code == 200


def test_service_recovers_when_the_database_returns(tmp_path) -> None:
    with ExitStack() as stack:
        # Its own database, because other tests use the shared one.
        cluster = stack.enter_context(run_cluster())
        url = cluster.database()
        service = stack.enter_context(run_service(tmp_path, database=url))
        app = stack.enter_context(service.app())
        app.connect()
        assert app.chat().status_code == 200
        body = chat_body("word " * 2000, model="wattfare/echo-slow", stream=True)
        headers = app.paid_by("u1")
        with app.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            assert any("word" in line for line in lines)
            cluster.stop()
            try:
                refused = app.chat()
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "upstream"
                assert int(refused.headers["retry-after"]) > 0
                # Calls in flight end before other processes may declare this one dead.
                assert '"upstream"' in list(lines)[-2]
            finally:
                cluster.start()
        # It recovers by itself, and no reservation stays.
        assert eventually(lambda: app.chat().status_code == 200)
        eventually(lambda: not reserved(url))
        assert service.stop() == 0
        assert read_database(url, verify) == []


def reserved(url: str) -> int:
    return read_database(
        url, lambda sql: sql.execute(text("SELECT count(*) FROM reservations")).scalar_one()
    )


def test_rate_limits_are_counted_across_processes(tmp_path, redis_url: str) -> None:
    options = ("--rate-limit-storage", redis_url)
    with (
        run_service(tmp_path, *options) as one,
        run_service(tmp_path, *options) as other,
        one.app() as app,
    ):
        statuses = [
            fetch(
                f"{service.api}/sessions", "POST", json={"appUserId": "u1"}, headers=app.auth
            ).status_code
            for service in (one, other) * 16
        ]
    assert Counter(statuses) == {200: 30, 429: 2}
