"""The funding pages: OpenRouter by OAuth, a payer's own keys, and removal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from sqlalchemy import delete, select, update
from support.fake_openrouter import FakeOpenRouter
from support.pages import Browser, Page, check_page
from support.payers import grow_old, new_payer, store_of, write
from support.service import Service, run_service

from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.store import Store


@pytest.fixture(scope="module")
def funded(
    openrouter: FakeOpenRouter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose payers bring their own OpenRouter keys."""
    with run_service(tmp_path_factory.mktemp("funded"), *openrouter.options) as service:
        yield service


@pytest.fixture
async def store(funded: Service) -> AsyncIterator[Store]:
    async with store_of(funded.database) as store:
        yield store


@pytest.fixture
async def browser(funded: Service, store: Store) -> AsyncIterator[Browser]:
    """The browser of a new payer."""
    with Browser(funded, (await new_payer(store)).cookie) as browser:
        yield browser


def leave(browser: Browser, **fields: str) -> str:
    """Presses the button to OpenRouter. Returns the URL that it leads to."""
    form = browser.get("/funding").form("Connect OpenRouter")
    answer = browser.send(form, **fields)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def connect(router: FakeOpenRouter, browser: Browser, person: str, **fields: str) -> Page:
    """Connects OpenRouter as this person."""
    return browser.get(router.allow(leave(browser, **fields), person))


async def rows(store: Store) -> list[dict[str, object]]:
    """All funding, newest last."""
    table = schema.funding
    return await store.transact(
        lambda sql: [
            dict(row) for row in sql.execute(select(table).order_by(table.c.created_at)).mappings()
        ]
    )


# -- OpenRouter


async def test_payer_connects_openrouter(
    router: FakeOpenRouter, browser: Browser, store: Store, funded: Service
) -> None:
    person = router.person("alice")
    url = leave(browser, limit="12.50")
    asked = dict(parse_qsl(urlsplit(url).query))
    assert url.startswith(f"{router.url.removesuffix('/api/v1')}/auth?")
    assert asked["code_challenge_method"] == "S256"
    assert len(asked["code_challenge"]) == 43
    assert (asked["limit"], asked["usage_limit_type"]) == ("12.5", "monthly")
    assert asked["key_label"] == f"Wattfare at localhost:{urlsplit(browser.origin).port}"
    callback = urlsplit(asked["callback_url"])
    assert asked["callback_url"].startswith(f"{browser.origin}/funding/openrouter/callback?state=")
    assert len(dict(parse_qsl(callback.query))["state"]) == 43

    page = browser.get(router.allow(url, person))
    assert page.answer.status_code == 200, page.text
    assert "You can pay with this from now on." in page.text
    assert "It had a limit of $12.50" in page.text
    (key,) = router.keys_of(person)
    assert (key.limit, key.limit_reset) == (Decimal("12.5"), "monthly")
    stored = (await rows(store))[-1]
    assert (stored["kind"], stored["state"]) == ("openrouter", "valid")
    assert key.key.encode() not in bytes(stored["ciphertext"])  # type: ignore[arg-type]
    assert key.key not in page.answer.text


def test_verifier_stays_on_the_server(
    router: FakeOpenRouter, browser: Browser, funded: Service
) -> None:
    person = router.person("bob")
    url = leave(browser)
    callback = router.allow(url, person)
    answer = browser.http.get(callback)
    assert answer.status_code == 303
    verifier = router.exchanges[-1]["code_verifier"]
    assert router.exchanges[-1]["code_challenge_method"] == "S256"
    seen = f"{url} {callback} {answer.headers} {browser.http.cookies}"
    assert verifier not in seen
    given = dict(parse_qsl(urlsplit(callback).query))
    logged = "".join(funded.log)
    for secret in (verifier, given["state"], given["code"], router.keys_of(person)[0].key):
        assert secret not in logged


def test_callback_url_ignores_the_host_header(browser: Browser) -> None:
    form = browser.get("/funding").form("Connect OpenRouter")
    answer = browser.post(form.action, form.fields, host="evil.example")
    assert answer.status_code == 303, answer.text
    (callback,) = parse_qs(urlsplit(answer.headers["location"]).query)["callback_url"]
    assert callback.startswith(f"{browser.origin}/funding/openrouter/callback")


def test_csp_allows_the_form_to_lead_to_openrouter(
    router: FakeOpenRouter, browser: Browser
) -> None:
    policy = browser.get("/funding").answer.headers["content-security-policy"]
    assert f"form-action 'self' {router.url.removesuffix('/api/v1')};" in policy


def test_cookie_is_bound_to_this_browser_for_ten_minutes(browser: Browser) -> None:
    form = browser.get("/funding").form("Connect OpenRouter")
    cookie = browser.send(form).headers["set-cookie"].lower()
    assert cookie.startswith("wattfare-openrouter=")
    for part in ("httponly", "samesite=lax", "max-age=600", "path=/"):
        assert part in cookie


def test_state_works_once(router: FakeOpenRouter, browser: Browser) -> None:
    person = router.person("carol")
    callback = router.allow(leave(browser), person)
    assert browser.http.get(callback).status_code == 303
    again = browser.get(callback)
    assert again.answer.status_code == 403
    assert "it was already used" in again.text
    assert len(router.keys_of(person)) == 1


def test_state_is_used_up_before_the_exchange(router: FakeOpenRouter, browser: Browser) -> None:
    """A code that OpenRouter refuses also uses up the state."""
    person = router.person("dave")
    callback = router.allow(leave(browser), person)
    wrong = callback.partition("&code=")[0] + "&code=wrong"
    answer = browser.get(wrong)
    assert answer.answer.status_code == 400
    assert "did not accept the authorization code. Connect OpenRouter again." in answer.text
    exchanges = len(router.exchanges)
    assert browser.get(callback).answer.status_code == 403
    assert len(router.exchanges) == exchanges
    assert not router.keys_of(person)


@pytest.mark.parametrize("state", ["", "wrong", "A" * 43, "\0", "é" * 500])
def test_wrong_state_connects_nothing(router: FakeOpenRouter, browser: Browser, state: str) -> None:
    person = router.person("erin")
    callback = router.allow(leave(browser), person)
    code = parse_qs(urlsplit(callback).query)["code"][0]
    exchanges = len(router.exchanges)
    path = f"/funding/openrouter/callback?{urlencode({'state': state, 'code': code})}"
    answer = browser.get(path)
    assert answer.answer.status_code == 403, answer.text
    assert len(router.exchanges) == exchanges


@pytest.mark.parametrize("cookie", [None, "A" * 43, ""])
def test_callback_in_another_browser_connects_nothing(
    router: FakeOpenRouter, browser: Browser, cookie: str | None
) -> None:
    """Mallory's callback fails in the browser of a payer who did not start it."""
    person = router.person("mallory")
    callback = router.allow(leave(browser), person)
    exchanges = len(router.exchanges)
    browser.http.cookies.delete("wattfare-openrouter")
    if cookie is not None:
        browser.http.cookies.set("wattfare-openrouter", cookie, domain="localhost.local")
    answer = browser.get(callback)
    assert answer.answer.status_code == 403
    assert "Nothing was connected" in answer.text
    assert len(router.exchanges) == exchanges


async def test_callback_of_another_payer_connects_nothing(
    router: FakeOpenRouter, browser: Browser, store: Store, funded: Service
) -> None:
    """It fails even with the cookie: two people may share a browser."""
    person = router.person("peggy")
    callback = router.allow(leave(browser), person)
    exchanges = len(router.exchanges)
    other = await new_payer(store)
    browser.http.cookies.delete("wattfare")
    browser.http.cookies.set("wattfare", other.cookie, domain="localhost.local", path="/")
    assert browser.get(callback).answer.status_code == 403
    assert len(router.exchanges) == exchanges


async def test_request_expires_after_ten_minutes(
    router: FakeOpenRouter, browser: Browser, store: Store
) -> None:
    person = router.person("trent")
    callback = router.allow(leave(browser), person)
    table = schema.funding_requests
    await write(store, update(table).values(expires_at=table.c.expires_at - 600))
    exchanges = len(router.exchanges)
    assert browser.get(callback).answer.status_code == 403
    assert len(router.exchanges) == exchanges


async def test_verifier_of_another_request_does_not_work(
    router: FakeOpenRouter, browser: Browser, store: Store
) -> None:
    """An attacker who can write to the database cannot swap verifiers: each is bound to its
    state."""
    table = schema.funding_requests
    await write(store, delete(table))  # those of other tests
    person = router.person("victor")
    first = router.allow(leave(browser), person)
    second = router.allow(leave(browser), person)
    verifier, _ = await store.transact(
        lambda sql: sql.execute(select(table.c.verifier)).scalars().all()
    )
    await write(store, update(table).values(verifier=verifier))
    answers = [browser.get(url).answer.status_code for url in (first, second)]
    assert sorted(answers) == [200, 400]


def test_two_tabs_can_be_open(router: FakeOpenRouter, browser: Browser) -> None:
    person = router.person("walter")
    callbacks = [router.allow(leave(browser), person) for _ in range(2)]
    for callback in callbacks:
        assert browser.http.get(callback).status_code == 303
    assert len(router.keys_of(person)) == 2


def test_callback_without_a_code_connects_nothing(router: FakeOpenRouter, browser: Browser) -> None:
    asked = dict(parse_qsl(urlsplit(leave(browser)).query))
    exchanges = len(router.exchanges)
    answer = browser.get(asked["callback_url"])
    assert answer.answer.status_code == 400
    assert len(router.exchanges) == exchanges


def test_callback_needs_the_sign_in(router: FakeOpenRouter, browser: Browser) -> None:
    person = router.person("olivia")
    callback = router.allow(leave(browser), person)
    browser.http.cookies.delete("wattfare")
    answer = browser.http.get(callback)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in?next=")
    assert not router.keys_of(person)


def test_page_warns_if_openrouter_sets_no_limit(router: FakeOpenRouter, browser: Browser) -> None:
    person = router.person("niaj")
    router.grants_limits = False
    try:
        page = connect(router, browser, person, limit="5")
    finally:
        router.grants_limits = True
    assert "OpenRouter gave the key no limit" in page.text
    assert router.keys_of(person)[0].limit is None


def test_connecting_returns_to_the_approval_page(router: FakeOpenRouter, browser: Browser) -> None:
    person = router.person("rupert")
    page = browser.get("/funding?return_to=/approve/abc-DEF_1")
    answer = browser.send(page.form("Connect OpenRouter"))
    answer = browser.http.get(router.allow(answer.headers["location"], person))
    assert answer.headers["location"] == "/approve/abc-DEF_1"


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example",
        "/approve/../../evil",
        "/approve/a\n",
        "/\\evil.example",
        "/sign-in?next=x",
        "javascript:alert(1)",
    ],
)
def test_connecting_returns_to_no_other_page(
    router: FakeOpenRouter, browser: Browser, path: str
) -> None:
    person = router.person("sybil")
    page = browser.get(f"/funding?{urlencode({'return_to': path})}")
    answer = browser.send(page.form("Connect OpenRouter"), return_to=path)
    answer = browser.http.get(router.allow(answer.headers["location"], person))
    assert answer.headers["location"] == "/funding?done=added"


# -- the way back to the app's request

APPROVAL = "/approve/abc-DEF_1"
ON_THE_WAY = f"/funding?{urlencode({'return_to': APPROVAL})}"


def leads_back(browser: Browser, page: Page) -> None:
    """The error page links to the funding page, which links to the request. Both stay in the app's
    popup: with its own COOP, the popup could not be closed afterwards."""
    check_page(page)
    assert "cross-origin-opener-policy" not in page.answer.headers
    there = browser.get(page.link("Ways to pay"))
    assert there.answer.status_code == 200
    assert there.link("Back to the app's request") == APPROVAL
    assert there.form("Connect OpenRouter").fields["return_to"] == APPROVAL


@pytest.mark.parametrize("failure", ["code", "no code", "state", "again", "cookie", "outage"])
def test_way_back_survives_a_failed_callback(
    router: FakeOpenRouter, browser: Browser, failure: str
) -> None:
    form = browser.get(ON_THE_WAY).form("Connect OpenRouter")
    url = browser.send(form).headers["location"]
    callback = router.allow(url, router.person("wendy"))
    if failure == "code":
        callback = callback.partition("&code=")[0] + "&code=wrong"
    elif failure == "no code":
        callback = callback.partition("&code=")[0]
    elif failure == "state":
        callback = callback.replace("state=", "state=A")
    elif failure == "again":
        browser.http.get(callback)
    elif failure == "cookie":
        browser.http.cookies.delete("wattfare-openrouter")
    else:
        router.upstream.first = lambda exchange: exchange.answer("", status=500) or True
    page = browser.get(callback)
    assert page.answer.status_code in (400, 403, 502, 503), page.text
    leads_back(browser, page)


def test_way_back_leads_to_our_own_pages_only(router: FakeOpenRouter, browser: Browser) -> None:
    callback = router.allow(leave(browser), router.person("wendy"))
    cookie = "wattfare-openrouter-return"
    browser.http.cookies.delete(cookie)
    browser.http.cookies.set(cookie, "https%3A%2F%2Fevil.example", domain="localhost.local")
    page = browser.get(callback + "wrong")
    assert page.answer.status_code == 400
    assert page.link("Ways to pay") == "/funding"


async def test_way_back_survives_an_old_sign_in(browser: Browser, store: Store) -> None:
    page = browser.get(ON_THE_WAY)
    await write(store, update(schema.sign_ins).values(fresh_at=0))
    for button in ("Connect OpenRouter", "Add the key"):
        answer = browser.send(page.form(button), key="sk-or-1")
        assert answer.status_code == 403
        assert "cross-origin-opener-policy" not in answer.headers
        url = Page(answer).link("Sign in")
        assert "cross-origin-opener-policy" not in browser.http.get(url).headers
        assert dict(parse_qsl(urlsplit(url).query)) == {"next": ON_THE_WAY, "again": "1"}


def test_way_back_survives_a_removal(router: FakeOpenRouter, browser: Browser) -> None:
    key = router.new_key(router.person("xavier"))
    browser.send(browser.get("/funding").form("Add the key"), key=key.key)
    page = browser.get(browser.get(ON_THE_WAY).link("Remove"))
    check_page(page)
    assert "cross-origin-opener-policy" not in page.answer.headers
    for name in ("Ways to pay", "Cancel"):
        assert page.link(name) == ON_THE_WAY
    form = page.form("Remove")
    removed = browser.follow(browser.send(form))
    assert "The key was deleted here" in removed.text
    assert removed.link("Back to the app's request") == APPROVAL
    again = Page(browser.send(form))
    assert again.answer.status_code == 404
    leads_back(browser, again)


# -- a payer's own key


async def test_key_is_checked_before_it_is_stored(
    router: FakeOpenRouter, browser: Browser, store: Store
) -> None:
    key = router.new_key(router.person("frank"), limit=Decimal(7))
    answer = browser.send(
        browser.get("/funding").form("Add the key"), key=f" {key.key}\n", label="<b>work</b>"
    )
    page = browser.follow(answer)
    assert "<b>work</b>" in page.text
    assert "It had a limit of $7.00" in page.text
    assert key.key not in page.answer.text
    stored = (await rows(store))[-1]
    assert key.key.encode() not in bytes(stored["ciphertext"])  # type: ignore[arg-type]
    assert (stored["kind"], stored["upstream"]) == ("key", router.url)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "This is not a key"),
        ("two words", "This is not a key"),
        ("schlüssel", "This is not a key"),
        ("x" * 1001, "This is not a key"),
        ("line\nbreak", "This is not a key"),
        ("sk-or-v1-unknown-to-all", "refuses this key"),
    ],
)
async def test_wrong_key_is_not_stored(
    browser: Browser, store: Store, key: str, words: str
) -> None:
    before = len(await rows(store))
    answer = browser.send(browser.get("/funding").form("Add the key"), key=key)
    assert answer.status_code == 400
    assert words in Page(answer).text
    assert not key or key not in answer.text
    assert len(await rows(store)) == before


def test_long_name_is_refused(router: FakeOpenRouter, browser: Browser) -> None:
    key = router.new_key(router.person("grace")).key
    answer = browser.send(browser.get("/funding").form("Add the key"), key=key, label="x" * 61)
    assert answer.status_code == 400
    assert "up to 60 characters" in answer.text
    assert key not in answer.text


async def test_funding_pages_need_a_recent_sign_in(
    router: FakeOpenRouter, browser: Browser, store: Store, funded: Service
) -> None:
    payer = await new_payer(store)
    with Browser(funded, payer.cookie) as own:
        page = own.get("/funding")
        key, start = page.form("Add the key"), page.form("Connect OpenRouter")
        await grow_old(store, payer)
        assert own.send(key, key=router.new_key(router.person("heidi")).key).status_code == 403
        assert own.send(start).status_code == 403
        page = own.get("/funding")
        assert "sign in again first" in page.text
        assert not page.forms
    assert not [row for row in await rows(store) if row["payer_id"] == payer.payer_id]


def test_funding_pages_need_a_sign_in(funded: Service) -> None:
    with Browser(funded) as anonymous:
        for path in ("/funding", "/funding/abc/remove"):
            answer = anonymous.http.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/sign-in?next=")


@pytest.mark.parametrize("path", ["/funding/keys", "/funding/openrouter", "/funding/abc/remove"])
def test_form_without_its_token_changes_nothing(browser: Browser, path: str) -> None:
    answer = browser.post(path, {"key": "x", "csrf": "wrong"})
    assert answer.status_code == 403
    answer = browser.post(path, {"key": "x"}, sec_fetch_site="cross-site")
    assert answer.status_code == 403


async def test_payer_sees_and_removes_only_their_own_funding(
    router: FakeOpenRouter, browser: Browser, store: Store, funded: Service
) -> None:
    key = router.new_key(router.person("ivan"))
    browser.send(browser.get("/funding").form("Add the key"), key=key.key, label="mine alone")
    path = browser.get("/funding").link("Remove")
    with Browser(funded, (await new_payer(store)).cookie) as other:
        assert "mine alone" not in other.get("/funding").text
        assert other.get(path).answer.status_code == 404
        token = other.get("/funding").form("Add the key").fields["csrf"]
        assert other.post(path, {"csrf": token}).status_code == 404
        key = router.new_key(router.person("judy")).key
        form = other.get("/funding").form("Add the key")
        funding_id = path.split("/")[2]
        assert other.send(form, key=key, replaces=funding_id).status_code == 404
    page = browser.follow(browser.send(browser.get(path).form("Remove")))
    assert "mine alone" not in page.text
    assert "everything that it paid for has stopped" in page.text
    (stored,) = [row for row in await rows(store) if row["id"] == funding_id]
    assert (stored["state"], stored["ciphertext"], stored["encryption_key_id"]) == (
        "removed",
        None,
        None,
    )


async def test_payer_adds_at_most_twenty_keys(
    router: FakeOpenRouter, browser: Browser, store: Store
) -> None:
    key = router.new_key(router.person("kim")).key
    form = browser.get("/funding").form("Add the key")
    for _ in range(20):
        assert browser.send(form, key=key, label='"' * 60).status_code == 303
    answer = browser.send(form, key=key)
    assert answer.status_code == 400
    assert "20 ways to pay already" in answer.text
    # The largest page.
    await write(store, update(schema.funding).values(state="invalid", limit_nanos=10**15))
    page = browser.get(f"/funding?return_to=/approve/{'A' * 32}")
    assert page.answer.text.count("Replace the key") == 40
    check_page(page)


def test_new_key_keeps_the_name_of_the_key_that_it_replaces(
    router: FakeOpenRouter, browser: Browser
) -> None:
    person = router.person("mike")
    form = browser.get("/funding").form("Add the key")
    browser.send(form, key=router.new_key(person).key, label="my own")
    form = browser.get("/funding").form("Replace")
    page = browser.follow(browser.send(form, key=router.new_key(person).key))
    assert len([text for text, _ in page.links if text == "Remove"]) == 1
    assert "my own" in page.text


def test_address_may_try_thirty_keys_a_minute(browser: Browser) -> None:
    form = browser.get("/funding").form("Add the key")
    statuses = [browser.send(form, key=f"sk-{number}").status_code for number in range(31)]
    assert statuses == [400] * 30 + [429]


# -- My budget


async def test_my_budget_shows_the_funding(
    router: FakeOpenRouter, browser: Browser, store: Store, funded: Service
) -> None:
    payer = await new_payer(store)
    with Browser(funded, payer.cookie) as own:
        assert "You have not added a way to pay yet." in own.get("/budget").text
        key = router.new_key(router.person("lena"))
        own.send(own.get("/funding").form("Add the key"), key=key.key, label="my own")
        funding_id = own.get("/funding").link("Remove").split("/")[2]
        with funded.app() as app:
            await store.connect(
                app.keys.app_id, "u1", None, payer_id=payer.payer_id, funding_id=funding_id
            )
            page = own.get("/budget")
            assert "paid by my own" in page.text
            assert page.link("Change ways to pay") == "/funding"
            key.revoked = True
            assert app.chat("hello", model="fake/model").status_code == 402
        page = own.get("/budget")
        assert "The provider refuses this key" in page.text
