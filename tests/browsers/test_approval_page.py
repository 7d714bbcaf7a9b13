"""The service's approval page, for any page of an app."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from playwright.sync_api import expect
from support.service import eventually

from browsers import flow
from browsers.flow import ALLOW, CAP, CREATE, Held, allow, approve, ask, button, new_user, redeem
from browsers.people import Person
from browsers.site import Site

NewPerson = Callable[..., Person]


def test_allow_and_redeem(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user, monthlyUsd=5)
    page = person.open(approval["url"])
    code = allow(person, site, page)
    assert site.status(user)["connected"] is False  # it starts when the app redeems it
    answer = redeem(site, user, approval, code)
    assert answer.status_code == 200, answer.text
    assert answer.json() == site.status(user)
    assert answer.json()["limits"] == {"monthlyUsd": 5}
    assert redeem(site, user, approval, code).status_code in (403, 409)  # once


def test_mailed_link_connects_no_user(person: Person, site: Site) -> None:
    """Mallory opens an approval, and the victim allows it. A client without the code, the secret or
    the right user cannot connect."""
    mallory, victim = new_user(), new_user()
    approval = ask(site, mallory, monthlyUsd=50)
    code = allow(person, site, person.open(approval["url"]))
    other = ask(site, victim)
    for user, given, secret in (
        (mallory, secrets.token_urlsafe(16), approval["secret"]),  # without the code
        (victim, code, secrets.token_urlsafe(16)),  # without the secret
        (victim, code, other["secret"]),
        (victim, code, approval["secret"]),  # another user of the app
    ):
        answer = redeem(site, user, approval, given, secret=secret)
        assert answer.status_code in (403, 404, 409), answer.text
    for user in (mallory, victim):
        assert site.status(user)["connected"] is False


def test_denied_approval_stays_denied(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user)
    page = person.open(approval["url"])
    flow.sign_in(person, page)
    with page.expect_request(re.compile(r"[?&]denied=1")):
        button(page, flow.DENY).click()
    page.goto(approval["url"])
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert not button(page, ALLOW).is_visible()
    assert redeem(site, user, approval, "x").status_code >= 400


def test_deny_ends_a_sign_in_that_waits_for_the_device(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user)
    page = person.open(approval["url"])
    challenge = Held(page, "**/sign-in/challenge")
    button(page, CREATE).click()
    challenge.wait()
    denial = Held(page, "**/approve/*")
    button(page, flow.DENY).click(no_wait_after=True)
    denial.wait()
    with page.expect_response("**/sign-in/challenge"):
        challenge.release()
    page.wait_for_timeout(300)  # the device would have answered
    with page.expect_request(re.compile(r"[?&]denied=1")):
        denial.release()
    assert redeem(site, user, approval, "x").status_code >= 400


def test_deny_during_the_sign_in_waits_for_the_next_page(person: Person, site: Site) -> None:
    approval = ask(site, new_user())
    page = person.open(approval["url"])
    sign_in = Held(page, "**/sign-in/passkey")
    page.evaluate(
        """document.addEventListener("submit", () => setTimeout(() => {
            [...document.forms].at(-1).requestSubmit();
            console.log("Deny was pressed");
        }, 50), { once: true })"""
    )
    with page.expect_console_message():
        button(page, CREATE).click(no_wait_after=True)  # the next page is held
    sign_in.release()
    button(page, ALLOW).wait_for()
    with page.expect_request(re.compile(r"[?&]denied=1")):
        button(page, flow.DENY).click()


def test_reloaded_page_counts_as_open(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user)
    page = person.open(approval["url"])
    button(page, CREATE).wait_for()
    token, path = site.token(user), f"/approvals/{approval['id']}/state"

    def is_open() -> bool:
        answer = site.api("POST", path, token, json={"secret": approval["secret"]})
        return answer.json()["open"]

    page.reload()
    page.wait_for_load_state("networkidle")
    eventually(is_open)
    page.close()
    eventually(lambda: not is_open())


def test_invalid_cap_is_reported_at_the_field(person: Person, site: Site) -> None:
    person.expect_problem("status of 400")
    user = new_user()
    approval = ask(site, user)
    page = person.open(approval["url"])
    flow.sign_in(person, page)
    for cap in ("", "five", "-1", "1e99", "NaN", "1 2", "0x10"):
        with page.expect_event("domcontentloaded"):  # the page before has an alert, too
            approve(person, page, cap)
        expect(page.get_by_role("alert")).to_be_visible()
        assert page.get_by_label(CAP, exact=True).get_attribute("aria-invalid") == "true"
    code = allow(person, site, page, cap="12.50")
    assert redeem(site, user, approval, code).json()["limits"] == {"monthlyUsd": 12.5}


def test_unlimited_has_its_own_checkbox(person: Person, site: Site) -> None:
    user = new_user()
    approval = ask(site, user, monthlyUsd=3)
    page = person.open(approval["url"])
    flow.sign_in(person, page)
    box = page.get_by_role("checkbox")
    expect(box).not_to_be_checked()
    box.check()
    code = allow(person, site, page)
    assert redeem(site, user, approval, code).json()["limits"] == {"monthlyUsd": None}


def test_second_payer_confirms_and_replaces_the_first(new_person: NewPerson, site: Site) -> None:
    user = new_user()
    first, second = new_person(), new_person()
    approval = ask(site, user, monthlyUsd=1)
    code = allow(first, site, first.open(approval["url"]))
    assert redeem(site, user, approval, code).status_code == 200
    again = ask(site, user, monthlyUsd=2)
    page = second.open(again["url"])
    approve(second, page)
    expect(page).to_have_title(re.compile("^Confirm"))  # it asks a second time
    expect(page.get_by_text("Another person pays")).to_be_visible()
    code = allow(second, site, page)
    assert redeem(site, user, again, code).json()["limits"] == {"monthlyUsd": 2}
    seen = first.open(f"{site.service}/budget")
    expect(seen.get_by_text(re.compile("another person", re.IGNORECASE)).first).to_be_visible()
    assert not button(seen, flow.STOP).is_visible()


def test_page_shows_the_requesting_app(person: Person, site: Site) -> None:
    body = {"appUserId": new_user(), "accountLabel": "Ada <b>Lovelace</b>"}
    made = site.api("POST", "/sessions", site.keys.secret_key, json=body)
    assert made.status_code == 200, made.text
    asked = site.api(
        "POST", "/approvals", made.json()["token"], json={"returnUrl": site.return_url}
    )
    page = person.open(asked.json()["url"])
    # the account is hidden before a sign-in
    assert "Lovelace" not in page.locator("main").inner_text()
    flow.sign_in(person, page)
    text = page.locator("main")
    expect(text).to_contain_text("Ada <b>Lovelace</b>")
    expect(text).to_contain_text(site.app)
    expect(text).to_contain_text("Chat")
