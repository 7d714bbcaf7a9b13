"""The page of a person's passkeys: adding one for another device, and removing a lost one."""

from __future__ import annotations

from playwright.sync_api import expect
from sqlalchemy import update

from browsers import flow
from browsers.flow import CREATE, button
from browsers.people import Person, assert_accessible
from browsers.site import Site
from wattfare_mw.service.ledger import schema
from wattfare_mw.service.ledger.databases import change_database


def test_lost_passkey_is_removed(person: Person, site: Site) -> None:
    page = person.open(f"{site.service}/budget")
    button(page, CREATE).click()
    page.get_by_role("link", name="Passkeys").click()
    expect(page.get_by_role("listitem")).to_have_count(1)
    assert button(page, "Remove").count() == 0
    # The device already has a passkey of this person, so it makes no other.
    button(page, CREATE).click()
    expect(page.get_by_role("alert")).to_contain_text("Your browser did not give a passkey.")

    # The list is in the order of seconds, and the second passkey may be of the same second.
    older = update(schema.passkeys).values(created_at=schema.passkeys.c.created_at - 60)
    change_database(site.running.database, lambda sql: sql.execute(older))
    lost = set(person.passkeys)
    person.take_another_device(page)
    button(page, CREATE).click()
    expect(page.get_by_role("listitem")).to_have_count(2)
    assert_accessible(page)
    assert len(person.passkeys) == 1
    assert not lost & set(person.passkeys)
    button(page, "Remove").first.click()
    expect(page.get_by_role("status")).to_contain_text("The passkey was removed")
    expect(page.get_by_role("listitem")).to_have_count(1)
    # The new passkey signs in.
    page.goto(f"{site.service}/budget")
    button(page, "Sign out").click()
    button(page, flow.SIGN_IN).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("My budget")
