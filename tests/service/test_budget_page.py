"""*My budget*: what a payer sees and does there, over real HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import func, insert, select, update
from support.pace import Pace
from support.pages import Browser, Page, check_page, token_of
from support.payers import SignedIn, grow_old, new_payer, store_of, write
from support.service import App, Service, chat_body, run_service

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.clock import utc_now
from wattfare_mw.service.ledger.rules import month_of
from wattfare_mw.service.ledger.store import Store

USD = 10**9
SCRIPT = "<script>alert('x')</script>\"&"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of this module: its tests write ledger rows without calls."""
    with run_service(tmp_path_factory.mktemp("budget")) as running:
        yield running


@dataclass
class Payer:
    """A payer with a signed-in browser."""

    payer: SignedIn
    browser: Browser
    store: Store

    @property
    def payer_id(self) -> str:
        return self.payer.payer_id

    def budget(self) -> Page:
        page = self.browser.get("/budget")
        assert page.answer.status_code == 200
        check_page(page)
        return page

    async def pays_for(
        self,
        app: App,
        user: str = "u1",
        cap: int | None = 20 * USD,
        label: str | None = None,
    ) -> None:
        """Connects this payer to a user of an app, as an approval does."""
        connected = await self.store.connect(
            app.keys.app_id, user, cap, payer_id=self.payer_id, label=label
        )
        assert connected


@pytest.fixture
async def store(service: Service) -> AsyncIterator[Store]:
    async with store_of(service.database) as store:
        yield store


@pytest.fixture
async def arrive(service: Service, store: Store) -> AsyncIterator[Callable[[], Any]]:
    """Creates another payer."""
    with ExitStack() as stack:

        async def arrive() -> Payer:
            payer = await new_payer(store)
            browser = stack.enter_context(Browser(service, payer.cookie))
            return Payer(payer, browser, store)

        yield arrive


@pytest.fixture
async def ada(arrive: Callable[[], Any]) -> Payer:
    return await arrive()


@pytest.fixture
async def bob(arrive: Callable[[], Any]) -> Payer:
    return await arrive()


async def add_calls(ada: Payer, app: App, count: int, *, user: str = "u1", **columns: Any) -> None:
    """Writes rows of the ledger without calls."""
    now = int(time.time())
    rows = [
        {
            "reservation_id": secrets.token_hex(16),
            "reserved_at": now,
            "settled_at": now - 1000 + number // 3,  # some at the same moment
            "app_id": app.keys.app_id,
            "user_id": user,
            "payer_id": ada.payer_id,
            "month": month_of(utc_now()),
            "model": f"m{number}",
            "prompt_tokens": number,
            "completion_tokens": 1,
            "reserved_nanos": 10,
            "billed_nanos": 0,
            "ended": "completed",
            "request_id": "r",
            **columns,
        }
        for number in range(count)
    ]
    await write(ada.store, insert(schema.ledger).values(rows))


def models(page: Page) -> list[str]:
    return re.findall(r'data-label="Model"><span><bdi>([^<]*)</bdi>', page.answer.text)


# -- who can see what


async def test_budget_page_needs_a_sign_in(service: Service) -> None:
    with Browser(service) as browser:
        for path in ("/budget", "/budget/calls?before=1.2", "/budget/calls.csv", "/budget/delete"):
            answer = browser.http.get(path)
            assert answer.status_code == 303
            location = answer.headers["location"]
            assert location.startswith("/sign-in?next=%2Fbudget")


async def test_budget_page_shows_what_each_app_spends(ada: Payer, app: App) -> None:
    await ada.pays_for(app, cap=20 * USD, label="ada@example.com")
    assert app.chat("one two three").status_code == 200
    page = ada.budget()
    assert "Account: ada@example.com" in page.text
    assert "$0.000009 of $20.00 spent, $19.99 left" in page.text
    meters = [attributes for tag, attributes in page.elements if tag == "meter"]
    assert [(each["max"], each["value"]) for each in meters] == [(str(20 * USD), "9000")]
    assert re.search(r"Each cap resets on 1 \w+ \d{4} at 0:00 UTC", page.text)
    assert "wattfare/echo33$0.000009" in page.text
    assert "test app" in page.text


async def test_payer_cannot_see_the_calls_of_another_payer(
    ada: Payer, bob: Payer, service: Service
) -> None:
    with service.app() as app:
        await ada.pays_for(app, "user-of-ada", label="label-of-ada")
        await bob.pays_for(app, "user-of-bob", label="label-of-bob")
        # Both have paid for the same user of the same app.
        await ada.pays_for(app, "shared", label="shared-by-ada")
        await bob.pays_for(app, "shared", label="shared-by-bob")
        for payer, name in ((ada, "ada"), (bob, "bob")):
            await add_calls(payer, app, 2, user="shared", model=f"model-of-{name}")
        for payer, own, other in ((ada, "ada", "bob"), (bob, "bob", "ada")):
            texts = [
                payer.browser.http.get(path).text
                for path in ("/budget", "/budget/calls", "/budget/calls.csv", "/budget/ended")
            ]
            text = "".join(texts)
            assert f"label-of-{own}" in text
            assert f"model-of-{own}" in text
            for secret in ("label-of", "user-of", "model-of", "shared-by"):
                assert f"{secret}-{other}" not in text
            assert ada.payer_id not in text
            assert bob.payer_id not in text
        # With the key of Bob's connection, Ada sees nothing of Bob's.
        shared, own = key_of(bob, "shared-by-bob"), key_of(bob, "label-of-bob")
        calls = ada.browser.get(f"/budget/calls?connection={shared}")
        assert "shared-by-ada" in calls.text
        assert set(models(calls)) == {"model-of-ada"}
        assert ada.browser.get(f"/budget/calls?connection={own}").answer.status_code == 404
        for key in (shared, own):
            assert ada.browser.get(f"/budget/connections/{key}").answer.status_code == 404


async def test_payer_cannot_change_or_stop_the_connection_of_another(
    ada: Payer, bob: Payer, app: App
) -> None:
    await ada.pays_for(app, label="of-ada")
    form = ada.budget().form("Stop")
    await bob.pays_for(app, label="of-bob", cap=USD)
    key = key_of(bob, "of-bob")
    csrf = token_of(ada.browser)
    # Ada's own connection had the same key, and was replaced.
    assert ada.browser.send(form).status_code == 303
    answer = ada.browser.post(f"/budget/connections/{key}", {"csrf": csrf, "cap": "0"})
    assert answer.status_code == 404
    assert "of-bob" in bob.budget().text
    assert "$0.00 of $1.00 spent" in bob.budget().text
    with app.service.app() as other:
        await bob.pays_for(other, label="also-of-bob")
        key = key_of(bob, "also-of-bob")
        answer = ada.browser.post(f"/budget/connections/{key}/stop", {"csrf": csrf})
        assert answer.status_code == 404
        assert "also-of-bob" in bob.budget().text


async def test_replaced_connection_is_shown_to_its_former_payer(
    ada: Payer, bob: Payer, app: App
) -> None:
    await ada.pays_for(app, label="mine")
    await bob.pays_for(app, label="not yours")
    page = ada.budget()
    assert "No app can spend from your budget." in page.text
    assert re.search(r"test app replaced Account: mine · .* spent this month", page.text)
    assert "Another person now pays for this account of the app." in page.text
    assert "not yours" not in page.text
    assert [form for form in page.forms if form.button == "Stop"] == []


async def test_markup_in_texts_of_an_app_is_escaped(ada: Payer, service: Service) -> None:
    keys = service.create_app(name=f"App {SCRIPT}")
    with App(service, keys) as app:
        await ada.pays_for(app, f"user {SCRIPT}")
        await add_calls(ada, app, 1, user=f"user {SCRIPT}", model=f"model {SCRIPT}")
        await ada.pays_for(app, "u2", label=f"label {SCRIPT}")
        key = key_of(ada, "label")
        for path in (
            "/budget",
            "/budget/calls",
            f"/budget/calls?connection={key}",
            f"/budget/connections/{key}",
        ):
            page = ada.browser.get(path)
            check_page(page)
            assert "script" not in [tag for tag, _ in page.elements]
            assert SCRIPT in page.text
        assert f"label {SCRIPT}" in ada.budget().text
        assert f"model {SCRIPT}" in ada.budget().text


async def test_largest_page_is_small(ada: Payer, service: Service) -> None:
    """It has the maximum number of rows, with the longest names."""
    long = '"' * 256
    with App(service, service.create_app(name=long)) as app:
        for number in range(12):
            await ada.pays_for(app, f"{number}{long[:250]}", label=long[:200], cap=10**18)
        for number in range(8):
            await ada.pays_for(app, f"e{number}{long[:250]}", label=long[:200])
        await write(
            ada.store,
            update(schema.payer_connections)
            .where(
                schema.payer_connections.c.payer_id == ada.payer_id,
                schema.payer_connections.c.user_id.like("e%"),
            )
            .values(ended_at=int(time.time()), ended="replaced"),
        )
        for _ in range(8):
            await add_funding(ada, long[:60])
        await add_calls(ada, app, 30, model=long, completion_tokens=10**15, billed_nanos=0)
        grants = [grant_of(ada, app) for _ in range(20)]
        await write(ada.store, insert(schema.grants).values(grants))
        for path in ("/budget", "/budget?page=2", "/budget/calls", "/budget/ended"):
            page = ada.browser.get(path)
            assert page.answer.status_code == 200
            check_page(page)
            assert "…" in page.text


# -- pages of rows


async def test_calls_are_shown_in_pages(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    await add_calls(ada, app, 60)
    page = ada.browser.get("/budget/calls")
    seen = models(page)
    for _ in range(2):
        check_page(page)
        page = ada.browser.get(page.link("Older calls"))
        seen += models(page)
    assert seen == [f"m{number}" for number in reversed(range(60))]
    assert not any(text == "Older calls" for text, _ in page.links)
    newest = ada.browser.get(page.link("Newer calls"))
    assert models(newest)[0] == "m59"
    assert models(ada.budget()) == [f"m{number}" for number in range(59, 54, -1)]


async def test_new_call_does_not_move_rows_between_pages(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    await add_calls(ada, app, 30)
    older = ada.browser.get("/budget/calls").link("Older calls")
    await add_calls(ada, app, 1, user="u2", model="new", settled_at=int(time.time()))
    assert models(ada.browser.get(older)) == ["m4", "m3", "m2", "m1", "m0"]


async def test_apps_are_shown_in_pages(ada: Payer, app: App) -> None:
    for number in range(13):
        await ada.pays_for(app, f"u{number}", label=f"label-{number:02d}")
    page = ada.budget()
    other = ada.browser.get(page.link("Older apps"))
    check_page(other)
    both = page.text + other.text
    assert sorted(re.findall(r"label-[0-9]+", both)) == [f"label-{n:02d}" for n in range(13)]
    assert len(re.findall(r"label-[0-9]+", page.text)) == 8
    assert ada.browser.get(other.link("Newer apps")).text == page.text


@pytest.mark.parametrize(
    "path",
    [
        "/budget?page=0",
        "/budget?page=-1",
        "/budget?page=x",
        "/budget?page=10000000000000000000000",
        "/budget?page=1000000" + "0" * 5000,
        "/budget/ended?page=10000000000000000000000",
        "/budget?page=",
        "/budget/calls?before=",
        "/budget/calls?before=1",
        "/budget/calls?before=1.x",
        "/budget/calls?before=9999999999999999.1",
        "/budget/calls?before=%00",
    ],
)
async def test_made_up_page_link_is_refused(ada: Payer, path: str) -> None:
    page = ada.browser.get(path)
    assert page.answer.status_code == 400
    check_page(page)


@pytest.mark.parametrize("key", ["x", "0" * 32, "..", "%2e%2e", "%00", "%f0%9f%92%a3"])
async def test_made_up_connection_is_not_found(ada: Payer, key: str) -> None:
    csrf = token_of(ada.browser)
    for path in (f"/budget/connections/{key}/stop", f"/budget/grants/{key}/stop"):
        assert ada.browser.post(path, {"csrf": csrf}).status_code == 404


# -- the month


async def test_spending_of_last_month_does_not_count(ada: Payer, app: App) -> None:
    await ada.pays_for(app, cap=USD)
    month = month_of(utc_now() - timedelta(days=32))
    row = {"app_id": app.keys.app_id, "user_id": "u1", "payer_id": ada.payer_id}
    await write(
        ada.store,
        insert(schema.totals).values(**row, month=month, billed_nanos=USD, reserved_nanos=0),
    )
    assert "$0.00 of $1.00 spent, $1.00 left" in ada.budget().text


async def test_call_in_flight_is_shown_separately(ada: Payer, app: App) -> None:
    await ada.pays_for(app, cap=USD)
    row = {"app_id": app.keys.app_id, "user_id": "u1", "payer_id": ada.payer_id}
    await write(
        ada.store,
        insert(schema.totals).values(
            **row, month=month_of(utc_now()), billed_nanos=USD // 4, reserved_nanos=USD // 10
        ),
    )
    text = ada.budget().text
    assert "$0.25 of $1.00 spent, $0.75 left" in text
    assert "Running calls reserve $0.10." in text


# -- who pays


async def test_page_shows_the_payment_method(ada: Payer, bob: Payer, app: App) -> None:
    assert "paid by" not in ada.budget().text
    mine, other = await add_funding(ada, "My <key>"), await add_funding(bob, "Key of bob")
    await ada.store.connect(
        app.keys.app_id, "u1", USD, payer_id=ada.payer_id, funding_id=mine, label="ada"
    )
    page = ada.budget()
    assert "Account: ada · paid by My <key>" in page.text
    assert page.link("Change ways to pay") == "/funding"
    assert "refuses this key" not in page.text
    assert "Key of bob" not in page.text
    table = schema.funding
    await write(ada.store, update(table).where(table.c.id == mine).values(state="invalid"))
    assert "The provider refuses this key, so calls fail." in ada.budget().text
    await write(ada.store, update(table).where(table.c.id == mine).values(state="valid"))
    await ada.store.remove_funding(ada.payer_id, mine)
    page = ada.budget()
    assert "funding removed" in page.text
    assert "No app can spend from your budget." in page.text
    assert "My <key>" not in page.text
    assert other in await rows_of_funding(bob)


async def test_page_shows_the_ceiling_of_the_operator(tmp_path: Path) -> None:
    options = ("--upstream", "http://127.0.0.1:9/v1", "--upstream-key", "k")
    with run_service(tmp_path, *options, "--user-ceiling-usd", "10") as service:
        async with store_of(service.database) as store:
            payer = await new_payer(store)
            with Browser(service, payer.cookie) as browser, service.app("live") as app:
                ada = Payer(payer, browser, store)
                await ada.pays_for(app, cap=20 * USD)
                page = ada.budget()
                assert "$0.00 of $10.00 spent, $10.00 left" in page.text
                assert "This service pays at most $10.00 a month." in page.text
                assert "paid by this service" in page.text
                assert 'class="badge"' not in page.answer.text  # a live app
                change = browser.get(page.link("Change"))
                check_page(change)
                assert "This service pays at most $10.00 a month." in change.text


# -- change the cap


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("5", "$5.00"),
        (" $12.50 ", "$12.50"),
        ("0", "$0.00"),
        (".5", "$0.50"),
        ("7.", "$7.00"),
        ("0.000000001", "$0.000000001"),
        ("19.999", "$19.99"),
        ("20", "$20.00"),
    ],
)
async def test_lowering_a_cap(ada: Payer, app: App, written: str, shown: str) -> None:
    await ada.pays_for(app, cap=20 * USD)
    await grow_old(ada.store, ada.payer)  # this needs no recent sign-in
    page = ada.browser.get(ada.budget().link("Change"))
    check_page(page)
    assert page.form("Save").fields["cap"] == "20.00"
    answer = ada.browser.send(page.form("Save"), cap=written)
    after = ada.browser.follow(answer)
    assert "The cap was changed." in after.text
    assert f"of {shown} spent" in after.text
    assert app.status()["limits"]["monthlyUsd"] == float(written.strip(" $"))


async def test_raising_a_cap_needs_a_recent_sign_in(ada: Payer, app: App) -> None:
    await ada.pays_for(app, cap=20 * USD)
    form = ada.browser.get(ada.budget().link("Change")).form("Save")
    assert ada.browser.send(form, cap="21").status_code == 303
    await grow_old(ada.store, ada.payer)
    for fields in ({"cap": "21.000000001"}, {"cap": "", "unlimited": "on"}):
        answer = ada.browser.send(form, **fields)
        assert answer.status_code == 403
        page = Page(answer)
        check_page(page)
        assert "To raise the cap, sign in again first" in page.text
        again = page.link("Sign in again")
        assert again.startswith("/sign-in?next=%2Fbudget%2Fconnections%2F")
        assert again.endswith("&again=1")
    assert "of $21.00 spent" in ada.budget().text
    assert ada.browser.send(form, cap="21").status_code == 303


async def test_no_cap_has_its_own_checkbox(ada: Payer, app: App) -> None:
    await ada.pays_for(app, cap=20 * USD)
    form = ada.browser.get(ada.budget().link("Change")).form("Save")
    assert "unlimited" not in form.fields
    assert ada.browser.send(form, unlimited="on").status_code == 303
    assert "$0.00 spent, no cap" in ada.budget().text
    form = ada.browser.get(ada.budget().link("Change")).form("Save")
    assert form.fields["unlimited"] == "on"
    del form.fields["unlimited"]
    await grow_old(ada.store, ada.payer)
    assert ada.browser.send(form, cap="3").status_code == 303  # any cap is lower
    assert "of $3.00 spent" in ada.budget().text


@pytest.mark.parametrize(
    "written",
    ["", "x", "-1", "1e3", "1,5", "1.2.3", "NaN", "Infinity", "1000000001", "9" * 400, "٣", "0x10"],
)
async def test_invalid_cap_changes_nothing(ada: Payer, app: App, written: str) -> None:
    await ada.pays_for(app, cap=20 * USD)
    form = ada.browser.get(ada.budget().link("Change")).form("Save")
    answer = ada.browser.send(form, cap=written)
    assert answer.status_code == 400
    page = Page(answer)
    check_page(page)
    assert "monthly cap" in page.text
    assert page.form("Save").fields["cap"] == written
    assert "of $20.00 spent" in ada.budget().text


# -- stop


async def test_stop_ends_a_connection(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    form = ada.budget().form("Stop")
    page = ada.browser.follow(ada.browser.send(form))
    assert "Stopped." in page.text
    assert "test app stopped" in page.text
    assert app.status()["connected"] is False
    assert app.chat().json()["error"]["code"] == "not_connected"
    assert ada.browser.send(form).status_code == 303  # a second click
    csrf = token_of(ada.browser)
    path = form.action.removesuffix("/stop")
    assert ada.browser.post(path, {"csrf": csrf, "cap": "1"}).status_code == 404
    assert ada.browser.get(path).answer.status_code == 404


async def test_stop_cuts_off_a_stream(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    form = ada.budget().form("Stop")
    body = chat_body("word " * 2000, model="wattfare/echo-slow", stream=True)
    with (
        Pace() as pace,
        app.http.stream(
            "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
        ) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        next(lines)
        pace.since()
        began = time.monotonic()
        assert ada.browser.send(form).status_code == 303
        stopped = time.monotonic()
        assert pace.on_idle(stopped - began) < 1
        last = list(lines)[-1]
        assert pace.on_idle(time.monotonic() - stopped) < 1
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "not_connected"
    assert error["requestId"] == answer.headers["x-request-id"]


async def test_stop_cuts_off_a_stream_of_another_process(tmp_path: Path) -> None:
    with run_service(tmp_path) as first, run_service(tmp_path) as second:
        async with store_of(first.database) as store:
            payer = await new_payer(store)
            with Browser(first, payer.cookie) as browser, second.app() as app:
                ada = Payer(payer, browser, store)
                await ada.pays_for(app)
                form = ada.budget().form("Stop")
                body = chat_body("word " * 2000, model="wattfare/echo-slow", stream=True)
                with (
                    Pace() as pace,
                    app.http.stream(
                        "POST", "/chat/completions", json=body, headers=app.paid_by("u1")
                    ) as answer,
                ):
                    lines = (line for line in answer.iter_lines() if line.startswith("data: "))
                    next(lines)
                    assert browser.send(form).status_code == 303
                    pace.since()
                    stopped = time.monotonic()
                    last = list(lines)[-1]
                    assert pace.on_idle(time.monotonic() - stopped) < 1
                assert json.loads(last[6:])["error"]["code"] == "not_connected"


async def test_grant_is_shown_and_can_be_stopped(ada: Payer, bob: Payer, app: App) -> None:
    await write(ada.store, insert(schema.grants).values(grant_of(ada, app)))
    page = ada.budget()
    assert "$0.00 of $1.00 spent, 3 calls left, until" in page.text
    form = page.form("Stop")
    csrf = token_of(bob.browser)
    assert bob.browser.post(form.action, {"csrf": csrf}).status_code == 404
    assert "One-time grants" not in bob.budget().text
    assert "Stopped." in ada.browser.follow(ada.browser.send(form)).text
    assert "One-time grants" not in ada.budget().text
    assert ada.browser.send(form).status_code == 404


# -- forms


async def test_form_of_another_sign_in_is_refused(ada: Payer, bob: Payer, app: App) -> None:
    await ada.pays_for(app)
    form = ada.budget().form("Stop")
    for csrf in (token_of(bob.browser), form.fields["csrf"][:-1], "", form.fields["csrf"] + "A"):
        assert ada.browser.send(form, csrf=csrf).status_code == 403
    assert "test app Account" not in ada.budget().text  # no label was given
    assert app.status()["connected"] is True
    # Without its cookie, the token is invalid.
    ada.browser.http.cookies.clear()
    assert ada.browser.send(form).status_code == 403
    assert app.status()["connected"] is True


# -- export


async def test_export_has_each_row(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    await add_calls(ada, app, 2345, billed_nanos=7)
    first = await first_row(ada)
    await add_calls(
        ada, app, 1, user="u2", billed_nanos=-3, corrects=first, settled_at=int(time.time())
    )
    answer = ada.browser.http.get("/budget/calls.csv")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="wattfare-calls.csv"'
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 2346
    assert len({row["call"] for row in rows}) == 2346
    assert rows[0]["app_user"] == "u1"
    assert rows[0]["cost_usd"] == "0.000000007"
    assert (rows[-1]["cost_usd"], rows[-1]["ended"]) == ("-0.000000003", "correction")
    total = sum(Decimal(row["cost_usd"]) for row in rows)
    assert total == Decimal(2345 * 7 - 3) / 10**9
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


@pytest.mark.parametrize(
    ("before", "formula"),
    [
        *[("", text) for text in ("=1+1", "+1", "-1", "@x", "\t=1", " =1")],
        *[("", text) for text in ("\uff1d1", "\uff0b1", "\uff0d1", "\uff201")],
        *[("Ltd;", "=1"), ("Ltd\t", "=1"), ('Ltd";', " @x")],
    ],
)
async def test_text_in_the_export_cannot_become_a_formula(
    ada: Payer, service: Service, before: str, formula: str
) -> None:
    name, escaped = f"{before}{formula}", f"{before}'{formula}"
    keys = service.create_app()
    await write(
        ada.store,
        update(schema.apps).where(schema.apps.c.id == keys.app_id).values(name=name),
    )
    with App(service, keys) as app:
        await ada.pays_for(app, f"{name}user")
        await add_calls(ada, app, 1, user=f"{name}user", model=f"{name}model")
    (row,) = csv.DictReader(io.StringIO(ada.browser.http.get("/budget/calls.csv").text))
    assert row["app"] == escaped
    assert row["app_user"] == f"{escaped}user"
    assert row["model"] == f"{escaped}model"


# -- delete my data


async def test_delete_my_data_deletes_every_row_of_the_payer(
    ada: Payer, bob: Payer, app: App
) -> None:
    await ada.pays_for(app, label="ada@example.com")
    await ada.pays_for(app, "u2", label="ada@example.com")
    await bob.pays_for(app, "u2", label="bob@example.com")
    await add_calls(ada, app, 3)
    await write(ada.store, insert(schema.grants).values(grant_of(ada, app)))
    await add_credentials(ada)
    await add_credentials(bob)
    page = ada.browser.get(ada.budget().link("Delete my data"))
    check_page(page)
    form = page.form("Delete my data")
    answer = ada.browser.send(form)
    assert answer.status_code == 400
    assert "Tick the box" in Page(answer).text
    assert "ada@example.com" in ada.budget().text

    answer = ada.browser.send(form, sure="on")
    assert answer.status_code == 200
    check_page(Page(answer))
    assert "Your data is deleted" in Page(answer).text
    assert 'wattfare=""; HttpOnly; Max-Age=0' in answer.headers["set-cookie"]
    assert app.status()["connected"] is False
    assert app.chat().json()["error"]["code"] == "not_connected"
    assert ada.browser.http.get("/budget").status_code == 303

    left = await rows_with(ada.store, ada.payer_id)
    assert left.keys() <= {"payers", "ledger", "connections", "totals", "grants", "funding"}
    assert len(left["ledger"]) == 3
    assert left["payers"][0]["deleted_at"] is not None
    for row in left["funding"]:
        assert row["ciphertext"] is row["encryption_key_id"] is None
        assert (row["state"], row["label"]) == ("removed", "")
    assert "ada@example.com" not in repr(left)
    assert all(row["expires_at"] <= time.time() for row in left["grants"])
    # Bob's data is unchanged.
    assert "bob@example.com" in bob.budget().text
    kept = await rows_with(ada.store, bob.payer_id)
    assert {"passkeys", "recovery_codes", "sign_ins", "funding"} <= kept.keys()
    assert kept["funding"][0]["ciphertext"] == b"secret"


async def test_delete_needs_a_recent_sign_in(ada: Payer, app: App) -> None:
    await ada.pays_for(app)
    form = ada.browser.get("/budget/delete").form("Delete my data")
    await grow_old(ada.store, ada.payer)
    page = ada.browser.get("/budget/delete")
    check_page(page)
    assert page.link("Sign in again") == "/sign-in?next=%2Fbudget%2Fdelete&again=1"
    assert ada.browser.send(form, sure="on").status_code == 403
    assert app.status()["connected"] is True


# -- helpers of the tests above


def key_of(payer: Payer, label: str) -> str:
    """The key of the connection with this label."""
    text = payer.browser.http.get("/budget").text
    found = re.search(
        rf"{re.escape(label)}.*?/budget/connections/([0-9a-f]{{32}})", text, re.DOTALL
    )
    assert found is not None
    return found[1]


def grant_of(payer: Payer, app: App) -> dict[str, Any]:
    """A row for a grant that this payer has approved."""
    return {
        "token_hash": secrets.token_hex(32),
        "app_id": app.keys.app_id,
        "requests_left": 3,
        "cap_nanos": USD,
        "expires_at": int(time.time()) + 3600,
        "billed_nanos": 0,
        "reserved_nanos": 0,
        "payer_id": payer.payer_id,
    }


async def first_row(payer: Payer) -> int:
    """The id of the payer's first row in the ledger."""
    wanted = select(func.min(schema.ledger.c.id)).where(schema.ledger.c.payer_id == payer.payer_id)
    return await payer.store.transact(lambda sql: sql.execute(wanted).scalar_one())


async def add_credentials(payer: Payer) -> None:
    """Adds a row to each table that refers to a payer."""
    owner = {"payer_id": payer.payer_id}
    name = secrets.token_hex(8)
    rows: dict[str, dict[str, Any]] = {
        "passkeys": {
            "credential_id": name,
            "public_key": b"k",
            "sign_count": 0,
            "created_at": 1,
            "last_used_at": 1,
        },
        "recovery_codes": {"code_hash": name},
        "challenges": {"id_hash": name, "kind": "k", "challenge": b"c", "expires_at": 1},
    }
    await add_funding(payer, "ada@example.com")
    for table, row in rows.items():
        await write(payer.store, insert(schema.metadata.tables[table]).values(**owner, **row))


async def add_funding(payer: Payer, label: str) -> str:
    """Adds a key of this payer; returns its id."""
    id_ = secrets.token_hex(8)
    row = insert(schema.funding).values(
        id=id_,
        payer_id=payer.payer_id,
        kind="key",
        upstream="https://upstream.example/v1",
        label=label,
        ciphertext=b"secret",
        encryption_key_id="1",
        state="valid",
        checked_at=1,
        created_at=1,
    )
    await write(payer.store, row)
    return id_


async def rows_of_funding(payer: Payer) -> list[str]:
    return [row["id"] for row in (await rows_with(payer.store, payer.payer_id))["funding"]]


async def rows_with(store: Store, payer_id: str) -> dict[str, list[Any]]:
    """Returns each row of the database that has this payer's id."""

    def job(sql: Sql) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for table in schema.metadata.sorted_tables:
            column = table.c.id if table.name == "payers" else table.c.get("payer_id")
            if column is not None:
                rows = sql.execute(select(table).where(column == payer_id)).mappings().all()
                if rows:
                    found[table.name] = [dict(row) for row in rows]
        return found

    return await store.transact(job)
