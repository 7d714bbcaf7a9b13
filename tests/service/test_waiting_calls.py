"""The queues of calls that wait for their budget."""

from __future__ import annotations

import asyncio

import pytest

from wattfare_mw.service.inference import waiting
from wattfare_mw.service.inference.waiting import BudgetQueues
from wattfare_mw.service.records import Account

ALICE, BOB = Account("app", "alice"), Account("app", "bob")


@pytest.fixture(autouse=True)
def _without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events must wake the calls. Otherwise the tests take a minute."""
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 60.0)


async def test_ended_call_wakes_the_first_call_of_its_payer() -> None:
    queues = BudgetQueues()
    with queues.place(ALICE) as first, queues.place(ALICE) as second, queues.place(BOB) as other:
        assert first.is_first
        assert other.is_first
        assert not second.is_first
        waits = [asyncio.create_task(place.wait(60)) for place in (first, second, other)]
        await asyncio.sleep(0)
        queues.freed(ALICE)
        async with asyncio.timeout(10):
            await waits[0]
        assert [wait.done() for wait in waits] == [True, False, False]
        for wait in waits[1:]:
            wait.cancel()


async def test_cancelled_call_wakes_the_next() -> None:
    queues = BudgetQueues()
    with queues.place(ALICE):
        second = queues.place(ALICE)
        place = second.__enter__()
    assert place.is_first
    async with asyncio.timeout(10):
        await place.wait(60)
    second.__exit__(None, None, None)
    assert not queues._queues  # a payer without calls takes no memory


async def test_event_during_a_check_is_not_lost() -> None:
    queues = BudgetQueues()
    with queues.place(ALICE) as place:
        place.clear()
        queues.freed(ALICE)  # while the ledger is read
        async with asyncio.timeout(10):
            await place.wait(60)
        place.clear()
        wait = asyncio.create_task(place.wait(60))
        await asyncio.sleep(0)
        assert not wait.done()
        wait.cancel()


async def test_wait_times_out() -> None:
    queues = BudgetQueues()
    queues.freed(ALICE)  # no call waits
    with queues.place(ALICE) as place:
        await place.wait(0.01)
        await place.wait(0)
        await place.wait(-1)
