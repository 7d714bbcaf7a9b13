"""The page of a payer's passkeys: adding one, removing a lost one, and keeping at least one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from support.authenticator import Authenticator
from support.pages import Form, Page, check_page
from support.payers import new_payer, store_of
from support.people import Person, change
from support.service import Service

from wattfare_mw.errors import WattfareError
from wattfare_mw.service.ledger.store import Store
from wattfare_mw.service.payers import people
from wattfare_mw.service.payers.passkeys import Passkey

PATH = "/budget/passkeys"


def passkeys(person: Person) -> Page:
    page = person.browser.get(PATH)
    assert page.answer.status_code == 200
    check_page(page)
    return page


def removals(page: Page) -> list[Form]:
    return [form for form in page.forms if form.button == "Remove"]


def add(person: Person) -> Authenticator:
    """Presses *Create a passkey* on another device."""
    device = Authenticator(person.browser.origin)
    (form,) = (form for form in passkeys(person).forms if form.action == "/sign-in/passkey")
    asked = person.challenge(form, "create")
    credential = device.create(asked["options"])
    answer = person.browser.send(form, challenge=asked["id"], credential=credential)
    assert (answer.status_code, answer.headers["location"]) == (303, PATH)
    return device


def test_lost_passkey_is_removed(person: Person, service: Service) -> None:
    person.sign_in()
    page = person.browser.get(person.browser.get("/budget").link("Passkeys"))
    check_page(page)
    assert "You have no recovery codes." in page.text
    assert removals(page) == []
    lost = person.authenticator
    with Person(service) as thief:
        thief.authenticator = lost
        thief.sign_in()
        assert thief.browser.http.get("/budget").status_code == 200
        begun = thief.challenge(thief.form(), "create")

        # The page shows the oldest first, to the second.
        change(service, "UPDATE passkeys SET created_at = created_at - 60")
        person.authenticator = add(person)
        first, second = removals(passkeys(person))
        assert first.action != second.action
        after = person.browser.follow(person.browser.send(first))
        assert "The passkey was removed" in after.text
        assert removals(after) == []
        # The lost device is signed out, cannot sign in, and cannot finish what it has started.
        assert thief.browser.http.get("/budget").status_code == 303
        assert thief.sign_in(kind="sign-in").status_code == 403
        credential = Authenticator(person.browser.origin).create(begun["options"])
        answer = thief.browser.send(thief.form(), challenge=begun["id"], credential=credential)
        assert answer.status_code == 403
    assert person.browser.http.get("/budget").status_code == 200
    assert person.sign_in().status_code == 303
    assert person.browser.send(first).status_code == 403  # the form of the former sign-in


def test_only_passkey_cannot_be_removed(person: Person) -> None:
    person.sign_in()
    add(person)
    forms = removals(passkeys(person))
    assert person.browser.send(forms[0]).status_code == 303
    answer = person.browser.send(forms[1])
    assert answer.status_code == 409
    assert "This is your only passkey. Create another one first." in Page(answer).text
    assert person.browser.send(forms[0]).status_code == 404


def test_old_sign_in_changes_nothing(person: Person, service: Service) -> None:
    person.sign_in()
    add(person)
    form = removals(passkeys(person))[0]
    change(service, "UPDATE sign_ins SET fresh_at = 0")
    page = passkeys(person)
    assert removals(page) == []
    assert page.link("Sign in again") == "/sign-in?next=%2Fbudget%2Fpasskeys&again=1"
    assert [each for each in page.forms if each.action.startswith("/sign-in")] == []
    answer = person.browser.send(form)
    assert answer.status_code == 403
    assert urlsplit(Page(answer).link("Sign in")).query == "next=%2Fbudget%2Fpasskeys&again=1"


def test_payer_cannot_remove_the_passkey_of_another(person: Person, other_person: Person) -> None:
    for each in (person, other_person):
        each.sign_in()
        add(each)
    theirs = removals(passkeys(other_person))[0]
    csrf = removals(passkeys(person))[0].fields["csrf"]
    assert person.browser.post(theirs.action, {"csrf": csrf}).status_code == 404
    assert len(removals(passkeys(other_person))) == 2


def test_page_shows_how_many_codes_are_left(person: Person) -> None:
    person.sign_in()
    person.browser.send(passkeys(person).form("New recovery codes"))
    assert "You have 10 recovery codes left." in passkeys(person).text


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with store_of(database) as opened:
        yield opened


async def test_two_concurrent_removals_leave_one_passkey(store: Store) -> None:
    for number in range(5):
        payer_id = (await new_payer(store)).payer_id
        for name in "ab":
            passkey = Passkey(f"{number}{name}", payer_id, b"", 0)
            await store.transact(
                lambda sql, passkey=passkey: people.add_passkey(sql, passkey, int(time.time()))
            )
        kept = await store.transact(lambda sql, id_=payer_id: people.passkeys_of(sql, id_))

        async def remove(key: str, payer_id: str = payer_id) -> None:
            await store.transact(lambda sql: people.remove_passkey(sql, payer_id, key, ""))

        answers = await asyncio.gather(*(remove(each.key) for each in kept), return_exceptions=True)
        (refusal,) = (each for each in answers if each is not None)
        assert isinstance(refusal, WattfareError)
        assert refusal.http_status == 409
        left = await store.transact(lambda sql, id_=payer_id: people.passkey_ids(sql, id_))
        assert len(left) == 1
