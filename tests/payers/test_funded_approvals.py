"""Approvals that a payer's own key pays for: the choice on the page, and its effect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_openrouter import FakeOpenRouter, Key
from support.pages import Page, check_page
from support.people import Person, ask, ask_for_grant, change, live_app, post, redeem
from support.service import App, Service, chat_body, run_service


@pytest.fixture(scope="module")
def funded(
    openrouter: FakeOpenRouter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose operator has no key."""
    with run_service(tmp_path_factory.mktemp("funded"), *openrouter.options) as service:
        yield service


@pytest.fixture
def app(funded: Service) -> Iterator[App]:
    with live_app(funded) as app:
        yield app


@pytest.fixture
def person(funded: Service) -> Iterator[Person]:
    with Person(funded) as person:
        yield person


def add_key(router: FakeOpenRouter, person: Person, page: Page) -> tuple[Key, Page]:
    """Adds a key during an approval. Returns the key and the approval's page."""
    key = router.new_key(router.person("owner"))
    form = person.browser.get(page.link("Add a way to pay")).form("Add the key")
    return key, person.browser.follow(person.browser.send(form, key=key.key))


def radios(page: Page) -> list[tuple[str, bool]]:
    """The choices, and whether each is available."""
    return [
        (attributes["value"], "checked" in attributes)
        for tag, attributes in page.elements
        if tag == "input" and attributes.get("name") == "funding"
    ]


def test_payer_adds_a_key_and_allows(router: FakeOpenRouter, app: App, person: Person) -> None:
    asked = ask(app, monthlyUsd=5)
    page = person.open(asked["url"])
    assert "Add a way to pay first." in page.text
    assert not radios(page)
    key, page = add_key(router, person, page)
    assert page.answer.request.url.path.startswith("/approve/")
    ((funding_id, is_chosen),) = radios(page)
    assert is_chosen
    answer = person.browser.send(page.form("Allow"), ready="1", funding=funding_id)
    code = answer.headers["location"].partition("code=")[2].partition("&")[0]
    assert redeem(app, asked, code).json()["connected"] is True
    assert app.chat("hello", model="fake/model").status_code == 200
    assert key.used == router.cost
    # The next time, it is preselected.
    assert radios(person.open(ask(app)["url"])) == [(funding_id, True)]


def test_choice_is_kept_without_javascript(
    router: FakeOpenRouter, app: App, person: Person
) -> None:
    asked = ask(app, monthlyUsd=5)
    key, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    second = Page(person.browser.send(page.form("Allow"), funding=funding_id))
    answer = person.browser.send(second.form("Allow"))
    code = answer.headers["location"].partition("code=")[2].partition("&")[0]
    assert redeem(app, asked, code).json()["connected"] is True
    assert app.chat("hello", model="fake/model").status_code == 200
    assert key.used == router.cost


def test_allow_needs_a_way_to_pay(app: App, person: Person) -> None:
    asked = ask(app, monthlyUsd=5)
    answer = person.allow(asked["url"])
    assert answer.status_code == 400
    assert "Choose what pays." in Page(answer).text
    answer = person.decide(asked["url"], funding="operator")
    assert answer.status_code == 400


def test_funding_of_another_payer_cannot_be_chosen(
    router: FakeOpenRouter, app: App, person: Person, funded: Service
) -> None:
    asked = ask(app, monthlyUsd=5)
    key, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    with Person(funded) as mallory:
        asked = ask(app, "mallory")
        mallory.open(asked["url"])
        answer = mallory.decide(asked["url"], funding=funding_id)
        assert answer.status_code == 400
        assert "This way to pay no longer exists" in Page(answer).text
    assert key.used == 0


def test_refused_key_cannot_be_chosen(router: FakeOpenRouter, app: App, person: Person) -> None:
    asked = ask(app, monthlyUsd=5)
    key, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    code = person.approve(asked["url"], funding=funding_id)["code"]
    redeem(app, asked, code)
    key.revoked = True
    assert app.chat("hello", model="fake/model").json()["error"]["code"] == "funding_invalid"
    asked = ask(app, monthlyUsd=5)
    page = person.open(asked["url"])
    check_page(page)
    assert not radios(page)
    assert person.decide(asked["url"], funding=funding_id).status_code == 400
    # Its own button leads to the page that replaces the key, and back.
    there = person.browser.get(page.link("Replace the key"))
    fresh = router.new_key(router.person("owner"))
    answer = person.browser.send(there.form("Replace"), key=fresh.key)
    back = person.browser.follow(answer)
    assert str(back.answer.request.url).endswith(asked["url"].partition("/approve/")[2])
    ((_, is_chosen),) = radios(back)
    assert is_chosen


def test_refused_openrouter_is_connected_again_from_the_approval(
    router: FakeOpenRouter, app: App, person: Person
) -> None:
    owner = router.person("owner")
    asked = ask(app, monthlyUsd=5)
    form = person.browser.get(person.open(asked["url"]).link("Add a way to pay"))
    url = person.browser.send(form.form("Connect OpenRouter")).headers["location"]
    ((funding_id, _),) = radios(person.browser.get(router.allow(url, owner)))
    code = person.approve(asked["url"], funding=funding_id)["code"]
    redeem(app, asked, code)
    router.keys_of(owner)[0].revoked = True
    assert app.chat("hello", model="fake/model").json()["error"]["code"] == "funding_invalid"

    asked = ask(app, monthlyUsd=5)
    page = person.open(asked["url"])
    check_page(page)
    assert not radios(page)
    policy = page.answer.headers["content-security-policy"]
    assert f" {router.url.removesuffix('/api/v1')};" in policy
    answer = person.browser.send(page.form("Connect OpenRouter again"))
    back = person.browser.get(router.allow(answer.headers["location"], owner))
    assert str(back.answer.request.url).endswith(asked["url"].partition("/approve/")[2])
    assert "Connect OpenRouter again" not in back.text
    assert len(radios(back)) == 1


def test_funding_removed_before_the_redemption_connects_nothing(
    router: FakeOpenRouter, app: App, person: Person
) -> None:
    asked = ask(app, monthlyUsd=5)
    _, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    code = person.approve(asked["url"], funding=funding_id)["code"]
    remove = person.browser.get(f"/funding/{funding_id}/remove").form("Remove")
    assert person.browser.send(remove).status_code == 303
    answer = redeem(app, asked, code)
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "funding_invalid")
    assert app.status()["connected"] is False


def test_key_pays_for_a_grant_and_its_removal_ends_it(
    router: FakeOpenRouter, app: App, person: Person
) -> None:
    asked = ask_for_grant(app, maxUsd=1)
    key, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    code = person.approve(asked["url"], funding=funding_id)["code"]
    body = {"code": code, "secret": asked["secret"]}
    answer = post(app, f"/approvals/{asked['id']}/redeem", app.keys.publishable_key, body)
    assert answer.status_code == 200, answer.text
    headers = {**app.auth, "x-wattfare-grant": answer.json()["grantToken"]}
    body = chat_body("hello", model="fake/model")
    answer = app.http.post("/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert key.used == router.cost
    remove = person.browser.get(f"/funding/{funding_id}/remove").form("Remove")
    assert person.browser.send(remove).status_code == 303
    answer = app.http.post("/chat/completions", json=body, headers=headers)
    assert answer.status_code == 402
    assert key.used == router.cost


def test_page_stays_in_the_popup_of_the_app(app: App, person: Person) -> None:
    """With its own COOP, the popup could not be closed afterwards."""
    page = person.open(ask(app)["url"])
    there = person.browser.get(page.link("Add a way to pay"))
    assert "cross-origin-opener-policy" not in there.answer.headers
    alone = person.browser.get("/funding")
    assert alone.answer.headers["cross-origin-opener-policy"] == "same-origin"


# -- the funding of a connection is changed later


@pytest.fixture
def connected(router: FakeOpenRouter, app: App, person: Person) -> tuple[Key, str]:
    """A connection, the key that pays for it, and the funding's id."""
    asked = ask(app, monthlyUsd=5)
    key, page = add_key(router, person, person.open(asked["url"]))
    ((funding_id, _),) = radios(page)
    redeem(app, asked, person.approve(asked["url"], funding=funding_id)["code"])
    return key, funding_id


def change_page(person: Person) -> Page:
    page = person.browser.get(person.browser.get("/budget").link("Change"))
    check_page(page)
    return page


def test_payer_switches_a_connection_to_another_key(
    router: FakeOpenRouter, app: App, person: Person, connected: tuple[Key, str]
) -> None:
    key, funding_id = connected
    page = change_page(person)
    assert radios(page) == [(funding_id, True)]
    other, page = add_key(router, person, page)
    assert page.answer.request.url.path.startswith("/budget/connections/")
    choices = dict(radios(page))
    assert choices.pop(funding_id)
    ((other_id, is_chosen),) = choices.items()
    assert not is_chosen
    after = person.browser.follow(person.browser.send(page.form("Save"), funding=other_id))
    assert "From now on, your choice pays." in after.text
    assert dict(radios(change_page(person))) == {funding_id: False, other_id: True}
    assert app.chat("hello", model="fake/model").status_code == 200
    assert (key.used, other.used) == (0, router.cost)
    # The former key can be removed, and the app still works.
    remove = person.browser.get(f"/funding/{funding_id}/remove").form("Remove")
    assert person.browser.send(remove).status_code == 303
    assert app.chat("hello", model="fake/model").status_code == 200


def test_switching_the_key_needs_a_recent_sign_in(
    router: FakeOpenRouter, app: App, person: Person, connected: tuple[Key, str], funded: Service
) -> None:
    key, funding_id = connected
    other, page = add_key(router, person, change_page(person))
    change(funded, "UPDATE sign_ins SET fresh_at = 0")
    (other_id,) = dict(radios(page)).keys() - {funding_id}
    answer = person.browser.send(page.form("Save"), cap="1", funding=other_id)
    assert answer.status_code == 403
    assert "sign in again first" in Page(answer).text
    # Nothing has changed. Lowering the cap alone needs no new sign-in.
    assert "of $5.00 spent" in person.browser.get("/budget").text
    answer = person.browser.send(page.form("Save"), cap="1", funding=funding_id)
    assert "The cap was changed." in person.browser.follow(answer).text
    assert app.chat("hello", model="fake/model").status_code == 200
    assert (key.used, other.used) == (router.cost, 0)


def test_foreign_or_refused_key_cannot_be_chosen(
    router: FakeOpenRouter, app: App, person: Person, connected: tuple[Key, str], funded: Service
) -> None:
    key, funding_id = connected
    page = change_page(person)
    with Person(funded) as mallory:
        mallory.sign_in()
        theirs = router.new_key(router.person("mallory"))
        form = mallory.browser.get("/funding").form("Add the key")
        mallory.browser.send(form, key=theirs.key)
        foreign = mallory.browser.get("/funding").link("Remove").split("/")[2]
    for wrong in (foreign, "operator", "0" * 32):
        answer = person.browser.send(page.form("Save"), funding=wrong)
        assert answer.status_code == 400
        check_page(Page(answer))
    other, page = add_key(router, person, page)
    (second,) = dict(radios(page)).keys() - {funding_id}
    key.revoked = other.revoked = True
    assert app.chat("hello", model="fake/model").status_code == 402
    person.browser.send(page.form("Save"), funding=second)
    assert app.chat("hello", model="fake/model").status_code == 402
    # Both are refused. The choice stays, and the cap can be changed.
    page = change_page(person)
    assert radios(page) == [(second, True)]
    assert page.text.count("Replace the key") == 2
    assert person.browser.send(page.form("Save"), funding=funding_id).status_code == 400
    assert person.browser.send(page.form("Save"), cap="2").status_code == 303
