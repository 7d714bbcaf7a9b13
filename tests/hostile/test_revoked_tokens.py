"""A session token from before a revocation connects nothing, on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from support.http_client import fetch
from support.service import App, Service, bearer, run_service
from support.sqlite import sqlite_database

from wattfare_mw.service.ledger.databases import open_store
from wattfare_mw.service.tokens import LEEWAY, LIFETIME, Session, Signer

SECRET = "s" * 40


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return sqlite_database(tmp_path_factory.mktemp("ledger"))
    return request.getfixturevalue("cluster").database()


@pytest.fixture(scope="module")
def running(
    database: str, tmp_path_factory: pytest.TempPathFactory, watch: Any
) -> Iterator[Service]:
    env = {"WATTFARE_SERVICE_SECRET": SECRET}
    with (
        run_service(tmp_path_factory.mktemp("running"), database=database, env=env) as running,
        watch(running),
    ):
        yield running


@pytest.fixture
def app(running: Service) -> Iterator[App]:
    with running.app() as app:
        yield app


def ask(app: App, method: str, token: str, **cap: float) -> httpx.Response:
    body = {"json": cap} if cap else {}
    return app.http.request(method, "/connections", headers=bearer(token), **body)


def test_old_token_reads_and_revokes_but_does_not_connect(app: App) -> None:
    old = app.token(monthlyUsd=20)
    assert ask(app, "POST", old, monthlyUsd=5).status_code == 200
    assert ask(app, "DELETE", app.token()).status_code == 204

    refused = ask(app, "POST", old, monthlyUsd=5)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "auth"
    assert "revoked" in refused.json()["error"]["message"]
    assert app.status()["connected"] is False
    assert app.chat().status_code == 402
    assert ask(app, "GET", old).json()["connected"] is False

    # The user comes back with a new token. The old one can still only revoke.
    assert ask(app, "POST", app.token(), monthlyUsd=1).status_code == 200
    assert ask(app, "POST", old, monthlyUsd=20).status_code == 401
    assert app.status()["limits"] == {"monthlyUsd": 1}
    assert ask(app, "GET", old).json()["limits"] == {"monthlyUsd": 1}
    assert ask(app, "DELETE", old).status_code == 204
    assert ask(app, "DELETE", old).status_code == 204
    assert app.status()["connected"] is False


def test_each_user_has_their_own_epoch(app: App) -> None:
    tokens = {user: app.token(user) for user in ("ada", "joan")}
    for token in tokens.values():
        assert ask(app, "POST", token).status_code == 200
    ask(app, "DELETE", tokens["ada"])
    assert ask(app, "POST", tokens["ada"]).status_code == 401
    assert ask(app, "POST", tokens["joan"], monthlyUsd=3).status_code == 200


def test_token_of_an_older_version_has_no_epoch(app: App) -> None:
    token = app.token()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="wattfare-connections")
    del claims["rev"]
    before = jwt.encode(claims, SECRET, algorithm="HS256")
    assert ask(app, "POST", before).status_code == 200
    assert ask(app, "DELETE", before).status_code == 204
    assert ask(app, "POST", before).status_code == 401


async def test_approvals_concurrent_with_a_revocation(database: str) -> None:
    """In any order, no approval with the old epoch succeeds after the revocation."""
    from wattfare_mw.service.ledger.databases import create_keys

    keys = await asyncio.to_thread(create_keys, database, "app")
    store, other = await open_store(database), await open_store(database)
    try:
        for number in range(20):
            user = f"u{number}"
            assert await store.connect(keys.app_id, user, 1, 0)
            jobs = [store.connect(keys.app_id, user, 9, 0), other.revoke(keys.app_id, user)]
            if number % 2:
                jobs.reverse()
            await asyncio.gather(*jobs)
            connection, _ = await store.account(keys.app_id, user)
            assert connection is not None
            assert (connection.connected, connection.revocations) == (False, 1)
            assert await other.epoch(keys.app_id, user) == 1
            assert not await store.connect(keys.app_id, user, 9, 0)
            assert await store.connect(keys.app_id, user, 2, 1)
    finally:
        await store.close()
        await other.close()


# -- the clocks of two hosts


@pytest.mark.parametrize(
    ("minted", "good"),
    [
        (0, True),
        (2, True),
        (LEEWAY - 1, True),
        (LEEWAY + 3, False),
        (3600, False),
        (-2, True),
        (3 - LIFETIME, True),
        (-1 - LIFETIME, False),
        (-LEEWAY - LIFETIME, False),
    ],
)
def test_clock_that_is_ahead(minted: float, good: bool) -> None:
    signer = Signer(b"k" * 32)
    session = Session("app1", "u1", None, 3)
    token = signer.mint(session, now=time.time() + minted).token
    if good:
        assert signer.read(token) == session
    else:
        with pytest.raises(Exception, match="session token"):
            signer.read(token)


def test_two_processes_with_different_clocks(tmp_path: Path) -> None:
    """Two processes share a ledger. The one that mints is two seconds ahead."""
    ahead_by_2 = "import time\nnow = time.time\ntime.time = lambda: now() + 2\n"
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "sitecustomize.py").write_text(ahead_by_2)
    from support.service import environment

    path = f"{tmp_path / 'ahead'}:{environment()['PYTHONPATH']}"
    with (
        run_service(tmp_path) as here,
        run_service(tmp_path, env={"PYTHONPATH": path}, forked=False) as ahead,
        here.app() as app,
    ):
        answer = fetch(f"{ahead.api}/sessions", "POST", json={"appUserId": "u1"}, headers=app.auth)
        token = answer.json()["token"]
        assert ask(app, "GET", token).status_code == 200
        assert ask(app, "POST", token).status_code == 200
