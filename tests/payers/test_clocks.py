"""The times of payers come from the database's clock. The clocks of several hosts can differ."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.payers import new_payer
from support.sqlite import sqlite_database

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.ledger.clock import seconds
from wattfare_mw.service.ledger.sqlite.store import SQLiteStore
from wattfare_mw.service.payers import people
from wattfare_mw.service.payers.encryption import KEY_BYTES, Keyring
from wattfare_mw.service.payers.funding import PayerFunding


class Clock:
    """The clock of a database, years away from that of this host."""

    def __init__(self) -> None:
        self.now = datetime(2031, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SQLiteStore]:
    opened = SQLiteStore(sqlite_database(tmp_path), clock=clock)
    yield opened
    await opened.close()


async def test_age_of_a_sign_in(store: SQLiteStore, clock: Clock) -> None:
    payer_id = (await new_payer(store)).payer_id
    token = await store.at(lambda sql, now: people.begin_sign_in(sql, payer_id, None, seconds(now)))
    for passed, is_fresh in ((0, True), (600, True), (1, False)):
        clock.now += timedelta(seconds=passed)
        found = await store.at(lambda sql, now: people.find_sign_in(sql, token, seconds(now)))
        assert found is not None
        assert found.is_fresh() is is_fresh


@pytest.mark.parametrize(
    ("passed", "message"), [(599, "authorization code"), (600, "last ten minutes")]
)
async def test_age_of_a_request_at_openrouter(
    store: SQLiteStore, clock: Clock, passed: int, message: str
) -> None:
    upstream: Any = SimpleNamespace(base_url="https://openrouter.ai/api/v1", http=None)
    keyring = Keyring([secrets.token_bytes(KEY_BYTES)])
    funding = PayerFunding(store, keyring, upstream, ["openrouter"], "https://pay.example")
    payer_id = (await new_payer(store)).payer_id
    started = await funding.start_openrouter(payer_id, None, "/funding", None)
    callback = parse_qs(urlsplit(started.url).query)["callback_url"][0]
    state = parse_qs(urlsplit(callback).query)["state"][0]
    clock.now += timedelta(seconds=passed)
    with pytest.raises(WattfareError, match=message):
        await funding.finish_openrouter(payer_id, state, "", started.cookie)
